"""A budget of reasoning as a constraint: what may come next, when the end is forced, what it says beside a grammar."""

import numpy as np
import pytest

from quire.base.errors import InvalidRequestError
from quire.base.thinking import ThinkingBudget
from quire.text.thinking import ThinkingConstraint, TokenSpelling, missing_bytes

WORDS = [b"<think>", b"</think>", b"\n\n", b"word ", "é".encode(), b"x</th", b"ink>y", b"</think><think>"]
PIECES = [bytes([i]) for i in range(256)] + WORDS
OPEN, CLOSE, GAP, WORD, ACCENT, HALF, REST, BOTH = range(256, 264)
END = (10, CLOSE, GAP)
SPELLING = TokenSpelling(PIECES)


def constraint(max_tokens, *, starts_open=True, grammar=None):
    budget = ThinkingBudget(
        max_tokens=max_tokens, opening="<think>", closing="</think>", end_token_ids=END, starts_open=starts_open
    )
    return ThinkingConstraint(budget, SPELLING, grammar=grammar)


def allowed(constraint) -> set[int]:
    mask = np.full(SPELLING.num_bytes // 4, -1, dtype=np.int32)
    constraint.fill(mask.ctypes.data, mask.nbytes)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def write(constraint, *token_ids):
    for token_id in token_ids:
        assert token_id in allowed(constraint)
        constraint.accept(token_id)
    return constraint


EVERYTHING = set(range(len(PIECES)))


class Grammar:
    """Allows some tokens at each place; complete behind the last."""

    num_free, is_over, failure = 0, False, None

    def __init__(self, places):
        self.places, self.heard = list(places), []

    is_complete = property(lambda self: len(self.heard) == len(self.places))

    def fill(self, address, num_bytes):
        bits = np.zeros(num_bytes * 8, dtype=np.uint8)
        bits[list(self.places[len(self.heard)])] = 1
        packed = np.packbits(bits, bitorder="little").tobytes()
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * num_bytes).from_address(address))[:] = list(packed)

    def accept(self, token_id):
        self.heard.append(token_id)

    def fork(self):
        copy = Grammar(self.places)
        copy.heard = list(self.heard)
        return copy


def test_everything_is_allowed_until_the_budget_is_used_up_and_then_exactly_its_end():
    own = write(constraint(5), *[WORD] * 5)
    assert own.num_free == 0
    for token_id in END:
        assert allowed(own) == {token_id}
        own.accept(token_id)
    assert allowed(own) == EVERYTHING and not own.is_over
    own.accept(WORD)
    assert own.is_over and own.failure is None and not own.is_complete


def test_a_budget_of_nothing_ends_reasoning_at_once():
    assert allowed(constraint(0)) == {10}
    own = write(constraint(0, starts_open=False), OPEN)
    assert allowed(own) == {10}


@pytest.mark.parametrize("end", [(CLOSE,), (HALF, REST), tuple(b"</think>")])
def test_reasoning_that_ends_by_itself_forces_nothing(end):
    own = write(constraint(12), WORD, *end)
    for _ in range(20):
        write(own, WORD)
    assert own.is_over and own.failure is None


def test_an_answer_without_reasoning_is_never_touched():
    own = constraint(3, starts_open=False)
    write(own, 10, ord("<"), ord("b"))
    assert own.is_over
    write(own, *[WORD] * 20)
    assert allowed(own) == EVERYTHING


def test_reasoning_that_is_begun_again_shares_the_budget():
    own = write(constraint(6), WORD, BOTH, WORD, CLOSE, GAP, OPEN)
    assert allowed(own) == {10}
    write(own, *END)
    write(own, OPEN)
    assert allowed(own) == {10}


def test_a_mark_in_the_midst_of_an_answer_is_text():
    own = write(constraint(4), CLOSE, WORD, OPEN, *[WORD] * 10)
    assert own.is_over and allowed(own) == EVERYTHING


def test_tokens_are_free_while_no_mask_could_forbid_any():
    """So overlapped steps need not wait for the token in flight."""
    own = constraint(10)
    free = []
    for _ in range(10):
        free.append(own.num_free)
        if own.num_free:
            assert allowed(own) == EVERYTHING
        own.accept(WORD)
    assert free == [7, 6, 5, 4, 3, 2, 1, 0, 0, 0]


def test_the_budget_cuts_no_character():
    """A character may begin only while the budget holds its end."""
    first = {2: 0xC3, 3: 0xE4, 4: 0xF0}
    for left in (1, 2, 3, 4):
        begun = {length for length, byte in first.items() if byte in allowed(constraint(left))}
        assert begun == {length for length in first if length <= left}
    own = write(constraint(2), 0xC3, 0xA9)
    assert allowed(own) == {10}
    assert ACCENT in allowed(constraint(1))


@pytest.mark.parametrize(
    ("piece", "missing"),
    [
        *(("", 0), ("a", 0), ("é", 0), ("😀", 0), (b"a\xc3", 1), (b"\xe4\xbd", 1), (b"\xe4", 2)),
        *((b"\xf0", 3), (b"\xf0\x9f\x98", 1), (b"\x98\x80", 0), (b"\x80\xf0\x9f", 2)),
    ],
)
def test_what_an_unfinished_character_still_needs(piece, missing):
    assert missing_bytes(piece if isinstance(piece, bytes) else piece.encode()) == missing


def test_a_grammar_beside_it_must_allow_a_token_too():
    grammar = Grammar([{WORD, 10}, {WORD, ord("a")}, {10, WORD}, {CLOSE}, {GAP}, {ord("{"), ord("[")}])
    own = constraint(2, grammar=grammar)
    assert own.num_free == 0 and allowed(own) == {WORD, 10}
    write(own, WORD, ord("a"), *END)
    assert allowed(own) == {ord("{"), ord("[")}
    copy = own.fork()
    write(own, ord("{"))
    assert own.is_complete and not own.is_over and not copy.is_complete
    assert grammar.heard == [WORD, ord("a"), *END, ord("{")]


def test_a_grammar_that_forbids_the_end_of_reasoning_fails_the_sample():
    """SEC-17: it goes on neither without the grammar nor without the budget."""
    own = constraint(1, grammar=Grammar([{WORD}, {WORD}]))
    write(own, WORD)
    assert allowed(own) == set() and "does not allow the end" in own.failure
    assert own.fork().failure == own.failure


def test_another_token_than_the_forced_one_fails_the_sample():
    own = constraint(0)
    own.accept(WORD)
    assert own.failure and allowed(own) == set() and own.num_free == 0 and not own.is_over


def test_a_copy_goes_on_where_the_original_was():
    own = write(constraint(4), WORD, WORD, WORD, WORD, 10)
    copy = own.fork()
    write(own, CLOSE, GAP, WORD)
    assert allowed(copy) == {CLOSE}


@pytest.mark.parametrize("given", [{"max_tokens": -1}, {"max_tokens": True}, {"end_token_ids": ()}, {"closing": ""}])
def test_a_budget_that_cannot_be_kept_is_refused(given):
    fields = {"max_tokens": 1, "opening": "<think>", "closing": "</think>", "end_token_ids": (1,)} | given
    with pytest.raises(InvalidRequestError) as caught:
        ThinkingBudget(**fields)
    assert caught.value.param == "thinking_token_budget"
