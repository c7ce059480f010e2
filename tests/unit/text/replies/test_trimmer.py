"""Whitespace beside markup."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.text.replies.trimmer import MAX_HELD_SPACE, Trimmer

MARK = object()


def trim(pieces):
    out = []
    trimmer = Trimmer(out.append)
    for piece in pieces:
        if piece is MARK:
            trimmer.mark()
        else:
            trimmer.text(piece)
    trimmer.finish()
    return "".join(out)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["  a  "], "  a  "),
        (["\n", MARK, "\n", "a"], "a"),
        (["a\n", MARK, "\n\n", MARK, " "], "a"),
        (["a\n", MARK, "  b"], "a\nb"),
        (["a", MARK, "\n", "\n", "b"], "a\n\nb"),
        (["a", MARK, "\n", MARK, " b "], "a\nb "),
        ([" a ", " b"], " a  b"),
        ([MARK, "\n"], ""),
        (["\n"], "\n"),
        ([MARK], ""),
        (["a", MARK, "b"], "ab"),
    ],
)
def test_whitespace_at_a_mark_goes_and_the_first_run_between_texts_stays(pieces, expected):
    assert trim(pieces) == expected


@given(st.lists(st.one_of(st.text(" \na"), st.just(MARK), st.integers(200, 300).map(lambda n: "\n" * n)), max_size=8))
def test_cuts_between_marks_change_nothing(pieces):
    assert trim(pieces) == trim([c for piece in pieces for c in ([MARK] if piece is MARK else piece)])


def test_long_whitespace_is_given_up_from_its_beginning():
    out = []
    trimmer = Trimmer(out.append)
    trimmer.text("a" + "\n" * 1000)
    assert len("".join(out)) == 1001 - MAX_HELD_SPACE
    trimmer.mark()
    trimmer.finish()
    assert len("".join(out)) == 1001 - MAX_HELD_SPACE
