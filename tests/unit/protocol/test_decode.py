"""Bodies that are wrong in every way a body can be wrong, and what the answer names."""

import pytest

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import ChatRequest
from quire.protocol.completions import CompletionRequest
from quire.protocol.decode import MAX_DEPTH, RequestDecoder, converted
from quire.protocol.responses import CallItem

CHAT = b'{"messages":[{"role":"user","content":"hi"}]%s}'
decoder = RequestDecoder(ChatRequest, hints={"guided_json": "not yet"})


def refusal(body: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        decoder.decode(body)
    return caught.value


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b'"0.5"', b"true", b"[1]"])
def test_a_number_that_is_not_a_finite_number_is_refused(literal: bytes) -> None:
    """SEC-14: NaN, infinities and overflowing literals never become sampling values."""
    refusal(CHAT % (b',"temperature":' + literal))


@pytest.mark.parametrize("literal", [b"1.0", b"1.5", b"true", b'"1"', b"1e2"])
def test_an_integer_field_takes_only_integers(literal: bytes) -> None:
    """SEC-14, SEC-13: no coercion of floats, strings or booleans."""
    error = refusal(CHAT % (b',"n":' + literal))
    assert error.param == "n"


@pytest.mark.parametrize(
    "text",
    [b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\udc00x"', b'"\\ud800\\u0041"'],
)
def test_text_that_is_no_unicode_is_refused(text: bytes) -> None:
    """SEC-26: invalid UTF-8 and lone surrogates are a 400, not an exception later."""
    assert refusal(b'{"messages":[{"role":"user","content":' + text + b"}]}").code == "invalid_json"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xef\xbb\xbf{}", b"{} trailing", b"{'a':1}"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    refusal(body)


def test_nesting_is_bounded_before_anything_recurses() -> None:
    """SEC-23: JSON depth at most 128; brackets inside strings do not count."""
    for depth in (MAX_DEPTH + 1, 900, 200_000):
        for name in (b"metadata", b"unknown", b"moderation"):
            error = refusal(CHAT % (b',"' + name + b'":' + b'{"a":' * depth + b"1" + b"}" * depth))
            assert "128" in str(error) or error.param == "unknown"
    decoder.decode(CHAT % (b',"moderation":' + b"[" * 100 + b"]" * 100))
    decoder.decode(CHAT % (b',"moderation":["' + b"[{" * 5000 + b'\\"[", ' + b"[]," * 500 + b"{}]"))


@pytest.mark.parametrize("item", [b"[],", b"{},", b"1,"])
def test_the_number_of_values_is_bounded_before_they_are_built(item: bytes) -> None:
    """SEC-23, SEC-22: a body under the byte cap cannot hold up the event loop with millions of tiny values."""
    assert "too many values" in str(refusal(CHAT % (b',"moderation":[' + item * 2_100_000 + b"1]")))


def test_an_unknown_field_is_named_with_a_hint_where_there_is_one() -> None:
    error = refusal(CHAT % b',"temprature":1,"foo":2')
    assert error.param == "temprature" and error.code == "unknown_parameter" and "foo" in str(error)
    error = refusal(CHAT % b',"guided_json":{}')
    assert error.param == "guided_json" and error.code == "unsupported_parameter" and "not yet" in str(error)


def test_an_unknown_field_that_is_null_asks_for_nothing() -> None:
    assert decoder.decode(CHAT % b',"guided_json":null,"audio":null').messages[0].content == "hi"


def test_errors_name_the_path_of_the_field() -> None:
    assert refusal(b'{"messages":[{"role":"user","content":[{"type":1}]}]}').param == "messages[0].content[0].type"
    assert refusal(b"{}").param == "messages"
    assert refusal(b'{"messages":[{}]}').param == "messages[0].role"
    assert refusal(b'{"messages":[{"role":"user","colour":1}]}').param == "messages[0].colour"
    assert refusal(b'{"messages":[]}').param == "messages"


def test_null_unknown_fields_do_not_hide_another_mistake() -> None:
    assert refusal(CHAT % b',"audio":null,"n":"x"').param == "n"


@pytest.mark.parametrize("prompt", [b"1", b"[]", b"[1.5]", b"[[true]]", b"[null]", b"{}"])
def test_a_prompt_of_no_known_form_is_refused(prompt: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RequestDecoder(CompletionRequest).decode(b'{"prompt":' + prompt + b"}")
    assert str(caught.value.param).startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"name": 1}, "items[2].name"), ({"call_id": None}, "items[2].call_id"), ({"odd": 1}, "items[2].odd")],
)
def test_a_part_whose_type_its_content_tells_names_its_place_in_the_body(fields, param) -> None:
    whole = {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}", "namespace": None}
    assert converted(whole, CallItem, "items[2]").name == "n"
    with pytest.raises(InvalidRequestError) as caught:
        converted(whole | fields, CallItem, "items[2]")
    assert caught.value.param == param and param in str(caught.value)
