"""The framing of events."""

from quire.protocol import sse


def test_a_named_event_has_its_name_on_a_line_of_its_own_before_the_data() -> None:
    assert sse.named_event("a.b", {"text": "x\ny"}) == b'event: a.b\ndata: {"text":"x\\ny"}\n\n'


def test_an_event_without_a_name_is_one_line_of_data() -> None:
    assert sse.event({"a": 1}) == b'data: {"a":1}\n\n' == sse.raw_event(b'{"a":1}')


def test_encoded_data_may_have_a_name_too() -> None:
    assert sse.raw_event(b"{}", name="error") == b"event: error\ndata: {}\n\n"
