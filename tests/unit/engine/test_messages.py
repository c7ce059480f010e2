"""Frames between front end and engine process: typed, bounded, never pickle."""

import pickle
import struct

import msgspec
import pytest

from quire.base.metrics import EngineStats
from quire.base.outputs import FinishReason, RequestMetrics, TokenLogprobs, TokenOutput
from quire.base.pooling import Pooling
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.engine.messages import (
    MAX_FRAME_BYTES,
    AbortMessage,
    AddMessage,
    FrameError,
    StepMessage,
    StopMessage,
    decode_from_engine,
    decode_to_engine,
    encode,
    frame_length,
)


class Canary:
    """Proves that something unpickled it."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def _request():
    return EngineRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        params=SamplingParams(stop=["x"], logit_bias={7: 1.5}, seed=-5),
        max_tokens=4,
        seed=-5,
        arrival_time=1.25,
        bad_words_token_ids=[[4, 5]],
        pooling=Pooling(kind="mean", normalizes=True, dimensions=3, second_segment=2),
    )


def _output():
    return TokenOutput(
        request_id="r",
        index=1,
        token_ids=[3],
        logprobs=[TokenLogprobs([3, 4], [-0.1, -2.0], [1, 2])],
        pooled=bytes(range(256)),
        finish_reason=FinishReason.STOP,
        metrics=RequestMetrics(arrival_time=1.0),
    )


@pytest.mark.parametrize("message", [AddMessage([_request()]), AbortMessage(["a"], [("b", 2)]), StopMessage()])
def test_messages_to_the_engine_arrive_as_they_were_sent(message):
    frame = encode(message)
    assert frame_length(frame[:4]) == len(frame) - 4
    assert decode_to_engine(frame[4:]) == message


def test_messages_from_the_engine_arrive_as_they_were_sent():
    message = StepMessage([_output()], EngineStats(step=3))
    assert decode_from_engine(encode(message)[4:]) == message


@pytest.mark.parametrize("decode", [decode_to_engine, decode_from_engine])
@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(Canary()),
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "run_code"}),
        msgspec.msgpack.encode({"type": "abort", "request_ids": [b"\xff"]}),
        msgspec.msgpack.encode({"type": "step", "outputs": [{"token_ids": "no"}], "stats": {}}),
        b"\x91" * 100_000,
    ],
    ids=["pickle", "empty", "unused byte", "unknown tag", "wrong type", "wrong fields", "deep nesting"],
)
def test_anything_that_does_not_fit_the_schema_is_refused(decode, body):
    """SEC-1: a fixed-schema codec; no canary runs."""
    with pytest.raises(FrameError):
        decode(body)


def test_a_frame_beyond_the_cap_is_refused_before_it_is_read():
    """SEC-1: length limits."""
    with pytest.raises(FrameError, match="at most"):
        frame_length(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_sampling_values_are_checked_again_on_arrival():
    """SEC-13, SEC-14: a message cannot carry parameters that the front end would have refused."""
    frame = msgspec.msgpack.decode(encode(AddMessage([_request()]))[4:])
    frame["requests"][0]["params"]["temperature"] = float("nan")
    with pytest.raises(FrameError, match="temperature"):
        decode_to_engine(msgspec.msgpack.encode(frame))
