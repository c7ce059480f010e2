"""From what a user asks to what the engine runs."""

import time

import pytest

from quire import SamplingParams
from quire.base.errors import ContextLengthError, InvalidRequestError
from quire.engine import requests as module
from quire.engine.messages import AddMessage, decode_to_engine, encode
from quire.engine.requests import RequestOptions, check_remote_logprobs


def _prepare(preparer, prompt=(1, 2, 3), *, name="a", options=None, **sampling):
    params = SamplingParams(**sampling)
    return preparer.prepare(prompt, params, request_id=name, options=options or RequestOptions())


def test_every_form_of_prompt_gives_the_same_ids_and_its_text(preparer, tokenizer):
    """S48: text, ids, and dicts of either or both."""
    ids = tokenizer.encode("hello there")
    forms = ["hello there", {"prompt": "hello there"}, {"prompt": "hello there", "prompt_token_ids": ids}]
    assert [preparer.encode(form) for form in forms] == [(ids, "hello there")] * 3
    assert preparer.encode(tuple(ids)) == preparer.encode({"prompt_token_ids": ids}) == (ids, None)


def test_engine_ids_are_never_used_twice(preparer):
    """SEC-25, SEC-34: what the engine still says about one request cannot reach the next of the same name."""
    prepared = [_prepare(preparer, name="same") for _ in range(3)]
    assert len({one.engine.request_id for one in prepared}) == 3
    assert {one.request_id for one in prepared} == {"same"}


def test_a_request_runs_a_copy_of_its_parameters(preparer):
    """S48: changing them afterwards changes nothing that runs."""
    params = SamplingParams(stop=["x"], allowed_token_ids=[4, 5])
    engine = preparer.prepare([1], params, request_id="a", options=RequestOptions()).engine
    params.temperature = 0.25
    params.stop.append("y")
    params.allowed_token_ids.append(6)
    assert (engine.params.temperature, engine.params.stop, engine.params.allowed_token_ids) == (1.0, ["x"], [4, 5])


def test_lengths_are_exact_refused_or_capped(preparer):
    """S75: the model of 64 tokens takes 63 of prompt and one of output."""
    assert _prepare(preparer, [1] * 60, max_tokens=4).engine.max_tokens == 4
    assert _prepare(preparer, [1] * 60, max_tokens=None).engine.max_tokens == 4
    assert _prepare(preparer, [1] * 63, options=RequestOptions(caps_length=True)).engine.max_tokens == 1
    with pytest.raises(ContextLengthError, match=r"60 tokens and 5 completion tokens.*65 in all.*64 tokens"):
        _prepare(preparer, [1] * 60, max_tokens=5)
    with pytest.raises(ContextLengthError, match="--max-model-len"):
        _prepare(preparer, [1] * 64, options=RequestOptions(caps_length=True))


def test_seeds_are_given_or_differ_by_request(preparer):
    assert _prepare(preparer, seed=-7).engine.seed == -7
    drawn = [_prepare(preparer).engine.seed for _ in range(4)]
    assert len(set(drawn)) == 4
    assert all(-(2**63) <= seed < 2**63 for seed in drawn)


def test_a_timeout_becomes_a_deadline_on_the_monotonic_clock(preparer):
    """REL-19: seconds from now, on a clock nobody sets."""
    engine = _prepare(preparer, options=RequestOptions(timeout=5.0)).engine
    assert engine.deadline == engine.arrival_time + 5.0
    assert abs(engine.arrival_time - time.monotonic()) < 5
    assert _prepare(preparer).engine.deadline is None


def test_bad_words_are_found_at_the_start_and_after_a_space(preparer, tokenizer):
    words = _prepare(preparer, bad_words=["garden", " garden"]).engine.bad_words_token_ids
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in ("garden", " garden")]
    assert words == expected


@pytest.mark.parametrize(
    ("prompt", "options", "sampling", "named"),
    [
        ([512], {}, {}, "prompt"),
        ([-1], {}, {}, "prompt"),
        ([True], {}, {}, "prompt"),
        ([], {}, {}, "prompt"),
        ({"text": "x"}, {}, {}, "prompt"),
        ([1], {}, {"stop_token_ids": [512]}, "stop_token_ids"),
        ([1], {}, {"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ([1], {}, {"logit_bias": {512: 1.0}}, "logit_bias"),
        ([1], {}, {"logprobs": 513}, "logprobs"),
        ([1], {"cache_salt": ""}, {}, "cache_salt"),
        ([1], {"weight": 0.0}, {}, "weight"),
        ([1], {"weight": float("nan")}, {}, "weight"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(preparer, prompt, options, sampling, named):
    """SEC-13, SEC-33: both bounds of every id list, and a salt that is one."""
    with pytest.raises(InvalidRequestError) as refused:
        _prepare(preparer, prompt, options=RequestOptions(**options), **sampling)
    assert refused.value.param == named


def test_the_tenant_crosses_to_the_engine_with_its_weight(preparer):
    """N2: what the scheduler shares by is part of the message."""
    request = _prepare(preparer, [1], options=RequestOptions(tenant="acme", weight=4.0)).engine
    crossed = decode_to_engine(encode(AddMessage([request]))[4:]).requests[0]
    assert (crossed.tenant, crossed.weight) == ("acme", 4.0)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_log_probabilities_between_processes_are_bounded(preparer, monkeypatch, name):
    """SEC-1: nobody can ask for an answer that is longer than a message may be."""
    with pytest.raises(InvalidRequestError, match="in_process=True"):
        check_remote_logprobs(_prepare(preparer, **{name: -1}).engine)
    check_remote_logprobs(_prepare(preparer, **{name: 300}).engine)
    monkeypatch.setattr(module, "MAX_LOGPROBS_BYTES", 20 * 3 * 11)
    check_remote_logprobs(_prepare(preparer, **{name: 10}).engine)
    with pytest.raises(InvalidRequestError, match="at most 10"):
        check_remote_logprobs(_prepare(preparer, n=3, **{name: 11}).engine)
