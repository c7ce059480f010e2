"""Stop strings in text that comes in pieces, against a search in the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import InvalidRequestError
from quire.text.stops import StopChecker


def search_whole(text, stops, *, include_stop):
    """The definition, naively: the first end at which any stop string is complete, the longest of those."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include_stop else end - len(stop)], stop
    return text, None


def feed(checker, pieces):
    """Everything emitted, piece by piece, and the stop string."""
    shown = []
    for piece in pieces:
        emitted, matched = checker.push(piece)
        shown.append(emitted)
        if matched is not None:
            return shown, matched
    return [*shown, checker.flush()], None


LETTERS = st.text(alphabet="ab\n🙂", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n🙂", min_size=1, max_size=5), max_size=4)


@given(LETTERS, STOPS, st.lists(st.integers(0, 24), max_size=6), st.booleans())
def test_any_split_gives_what_a_search_in_the_whole_text_gives(text, stops, cuts, include_stop):
    """REL-11: found across and inside pieces, held-back text delivered at the end."""
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    shown, matched = feed(StopChecker(stops, include_stop=include_stop), pieces)
    assert ("".join(shown), matched) == search_whole(text, stops, include_stop=include_stop)


@given(LETTERS, STOPS)
def test_nothing_shown_ever_belongs_to_a_stop_string(text, stops):
    """REL-11, wire 12: what is emitted early is a prefix of what is right in the end."""
    right, _ = search_whole(text, stops, include_stop=False)
    checker, so_far = StopChecker(stops, include_stop=False), ""
    for character in text:
        so_far += checker.push(character)[0]
        assert right.startswith(so_far)


@given(LETTERS, STOPS)
def test_no_more_is_held_than_may_begin_a_stop_string(text, stops):
    """Wire 12: text that cannot become a stop string is shown at once."""
    checker, so_far = StopChecker(stops, include_stop=False), ""
    for end in range(1, len(text) + 1):
        emitted, matched = checker.push(text[end - 1])
        so_far += emitted
        if matched:
            return
        held = text[len(so_far) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(("include", "expected"), [(False, "The end"), (True, "The end###")])
def test_a_stop_string_over_three_tokens_is_removed_unless_asked_for(include, expected):
    """REL-11, wire 12."""
    shown, matched = feed(StopChecker(["###"], include_stop=include), ["The end#", "#", "# more"])
    assert ("".join(shown), matched) == (expected, "###")


def test_the_first_to_be_complete_wins_and_the_longest_of_those():
    """The documented order: earliest end, then longest."""
    assert feed(StopChecker(["abcd", "bc"], include_stop=False), ["xabcd"]) == (["xa"], "bc")
    assert feed(StopChecker(["bc", "abc"], include_stop=False), ["xabcd"]) == (["x"], "abc")
    assert feed(StopChecker(["ab", "abc"], include_stop=False), ["xabc"]) == (["x"], "ab")


def test_held_text_that_was_no_stop_string_is_delivered_in_order():
    """REL-11: also when the output ends at the length limit."""
    checker = StopChecker(["\n\nUser:"], include_stop=False)
    assert checker.push("Hi\n\nUs") == ("Hi", None)
    assert checker.push("ing") == ("\n\nUsing", None)
    assert checker.push("\n\nUse") == ("", None)
    assert checker.flush() == "\n\nUse"


def test_text_after_a_stop_string_is_dropped():
    checker = StopChecker(["x"], include_stop=False)
    assert checker.push("axb") == ("a", "x")
    assert checker.push("more") == ("", "x")
    assert checker.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidRequestError, match="non-empty"):
        StopChecker([""], include_stop=False)


def test_work_is_linear_for_stop_strings_that_overlap_themselves():
    """REL-11, SEC-11: sixteen strings of 1 KiB cost a bounded number of steps per character."""
    stops = ["a" * 1000 + chr(98 + i) for i in range(16)]
    checker = StopChecker(stops, include_stop=False)
    steps = 0

    class Counting:
        def __init__(self, edges):
            self.edges = edges

        def __contains__(self, character):
            nonlocal steps
            steps += 1
            return character in self.edges

        def __getitem__(self, character):
            return self.edges[character]

        def get(self, character, default):
            return self.edges.get(character, default)

    automaton = checker._automaton
    automaton.next = [Counting(edges) for edges in automaton.next]
    text = ("a" * 999 + "z") * 20
    for start in range(0, len(text), 7):
        checker.push(text[start : start + 7])
    assert steps <= 3 * len(text)
