"""Several strings at once, against looking for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.text.automaton import Automaton

WORDS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@given(WORDS, st.text("ab<c", max_size=20), st.integers(0, 5))
def test_search_finds_the_string_that_is_complete_first(strings, text, start):
    ends = [(place + len(s), -len(s), s) for s in strings if (place := text.find(s, start)) >= 0]
    place, found = Automaton(strings).search(text, start)
    if ends:
        end, _, first = min(ends)
        assert (place, found) == (end - len(first), first)
    else:
        assert found is None
        tails = [
            n for n in range(max(len(text) - start, 0) + 1) if any(s.startswith(text[len(text) - n :]) for s in strings)
        ]
        assert len(text) - place == (max(tails) if len(text) > start else 0)
