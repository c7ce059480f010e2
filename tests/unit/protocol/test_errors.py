"""The shapes of an error, whatever goes into them."""

import json

import pytest

from quire.protocol.errors import MAX_ERROR_BYTES, encode_anthropic_error, encode_error
from quire.protocol.sse import DONE, KEEP_ALIVE, event, raw_event


@pytest.mark.parametrize("message", ["x" * 10**6, "\x00" * 10**6, "😀" * 10**6, '"' * 10**6, "\ud800" * 5000])
def test_an_error_stays_small_whatever_it_quotes(message: str) -> None:
    """SEC-24: at most 4 KiB, valid JSON, also for control characters and lone surrogates."""
    body = encode_error(message, type="invalid_request_error", param="p" * 10**5, code="c")
    assert len(body) <= MAX_ERROR_BYTES
    error = json.loads(body)["error"]
    assert error["message"] and error["code"] == "c"
    body = encode_anthropic_error(message, type="api_error", request_id="r" * 256)
    assert len(body) <= MAX_ERROR_BYTES and json.loads(body)["error"]["message"]


def test_param_and_code_are_there_when_null() -> None:
    """wire 37, 38: the four keys are always present."""
    assert json.loads(encode_error("no", type="t"))["error"] == {
        "message": "no",
        "type": "t",
        "param": None,
        "code": None,
    }


def test_an_event_is_one_line_of_json_and_a_blank_line() -> None:
    """wire 1: line breaks in text are escaped."""
    assert event({"text": "a\nb\r\n"}) == b'data: {"text":"a\\nb\\r\\n"}\n\n'
    assert raw_event(b"{}") == b"data: {}\n\n"
    assert DONE == b"data: [DONE]\n\n" and KEEP_ALIVE.startswith(b":")
