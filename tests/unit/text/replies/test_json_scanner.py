"""The end of a JSON value, against Python's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.text.replies.json_scanner import MAX_DEPTH, JsonScanner

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def scan(text, step=1):
    """Whether `text` begins with a value, and where that ends; None while it is open."""
    scanner = JsonScanner()
    place = 0
    for stop in [*range(0, len(text), step), len(text)]:
        while place < stop and not scanner.is_over:
            place = scanner.read(text, place, stop)
    return (scanner.is_valid, place) if scanner.is_over else None


@given(JSON, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 7))
def test_any_value_ends_where_it_ends(value, indent, is_ascii, step):
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    assert scan(" " + text + " x", step) == (True, len(text) + 1)
    if isinstance(value, str | list | dict):
        assert all(scan(text[:end], step) is None for end in range(len(text)))


@given(st.text('{}[]",:0123456789.-+eEtrufalsn\\ \n', max_size=14), st.integers(1, 5))
def test_it_agrees_with_python_on_what_is_json(text, step):
    found = scan(text + " ", step)
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text.lstrip(" \n"))
    except ValueError:
        assert found is None or not found[0] or found[1] < len(text) + 1
        assert found is None or not found[0]
    else:
        assert value is not ... and found is not None
        if found[0]:
            assert found[1] == end + len(text) - len(text.lstrip(" \n"))
        else:
            # Python takes `1` off `1.`, `1e` and `01`; what follows makes it no number.
            assert isinstance(value, int | float)


@pytest.mark.parametrize(
    "text",
    [
        "1. ",
        "-",
        "+1",
        "1e+ ",
        "tru ",
        "nul!",
        "[1,]",
        "{,}",
        '{"a"}',
        '{"a":1,}',
        "{1:2}",
        "]",
        '"\\x"',
        '"\\u00g"',
    ],
)
def test_what_is_no_json_is_noticed(text):
    found = scan(text + "!")
    assert found is not None and not found[0]


def test_nesting_has_a_limit():
    assert scan("[" * MAX_DEPTH + "]" * MAX_DEPTH) == (True, 2 * MAX_DEPTH)
    assert scan("[" * (MAX_DEPTH + 1)) == (False, MAX_DEPTH)
