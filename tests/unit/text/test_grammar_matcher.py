"""Which tokens may come next: masks, ends, copies, and constraints that cannot go on."""

import numpy as np
import pytest

from quire.base.errors import InvalidRequestError
from quire.base.structured import StructuredOutputsParams
from quire.text.grammar import grammar_of
from quire.text.grammar_matcher import GrammarCompiler, GrammarConstraint, kept_bytes, mask_bytes, no_vocabulary
from quire.text.grammar_vocabulary import build_vocabulary
from quire.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(demo_path):
    return Tokenizer.load(demo_path)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return build_vocabulary(tokenizer, num_rows=tokenizer.vocab_size + 37, eos_token_ids=[tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def compiler(vocabulary):
    return GrammarCompiler(lambda: vocabulary)


def constraint(compiler, **given) -> GrammarConstraint:
    return compiler.compile(grammar_of(StructuredOutputsParams(**given))).result()


def allowed(constraint, vocabulary) -> set[int]:
    mask = np.full(mask_bytes(vocabulary.vocab_size) // 4, -1, dtype=np.int32)
    constraint.fill(mask.ctypes.data, mask.nbytes)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_the_mask_holds_exactly_the_tokens_that_can_go_on(compiler, vocabulary, tokenizer):
    found = allowed(constraint(compiler, choice=["yes", "no"]), vocabulary)
    texts = {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)}
    expected = {i for i, text in texts.items() if text and (b"yes".startswith(text) or b"no".startswith(text))}
    assert found == expected


def test_the_end_of_sequence_is_allowed_only_where_the_output_may_end(compiler, vocabulary, tokenizer):
    number = constraint(compiler, regex="[0-9]+")
    assert tokenizer.eos_token_id not in allowed(number, vocabulary)
    (digit,) = tokenizer.encode("7", add_special_tokens=False)
    number.accept(digit)
    assert tokenizer.eos_token_id in allowed(number, vocabulary)
    assert not number.is_complete
    number.accept(tokenizer.eos_token_id)
    assert number.is_complete and number.failure is None


def test_an_output_to_which_nothing_can_be_added_is_complete_without_an_end_token(compiler, tokenizer):
    answer = constraint(compiler, choice=["yes"])
    for token_id in tokenizer.encode("yes", add_special_tokens=False):
        assert not answer.is_complete
        answer.accept(token_id)
    assert answer.is_complete


def test_ids_without_a_token_are_never_allowed(compiler, vocabulary, tokenizer):
    found = allowed(constraint(compiler, regex="(.|\n)*"), vocabulary)
    assert max(found) < tokenizer.vocab_size


def test_a_token_that_was_not_allowed_fails_the_constraint_for_good(compiler, vocabulary, tokenizer):
    """SEC-17: from then on nothing is allowed, and the reason is kept."""
    number = constraint(compiler, regex="[0-9]+")
    (letter,) = tokenizer.encode("a", add_special_tokens=False)
    number.accept(letter)
    assert number.failure and not number.is_complete
    assert allowed(number, vocabulary) == set()
    assert allowed(number.fork(), vocabulary) == set() and number.fork().failure == number.failure


def test_samples_of_one_request_go_their_own_ways(compiler, vocabulary, tokenizer):
    first = constraint(compiler, choice=["ab", "cd"])
    second = first.fork()
    before = allowed(second, vocabulary)
    first.accept(tokenizer.encode("a", add_special_tokens=False)[0])
    assert allowed(second, vocabulary) == before


def test_equal_grammars_are_compiled_once_and_used_apart(vocabulary, tokenizer):
    built = []
    compiler = GrammarCompiler(lambda: built.append(1) or vocabulary)
    first, second = (constraint(compiler, choice=["ab"]) for _ in range(2))
    assert built == [1]
    first.accept(tokenizer.encode("a", add_special_tokens=False)[0])
    assert allowed(first, vocabulary) != allowed(second, vocabulary)


def test_old_grammars_are_given_up_when_their_memory_exceeds_the_bound(vocabulary, monkeypatch):
    """SEC-19: what each takes however small it is counts too."""
    monkeypatch.setattr("quire.text.grammar_matcher.MAX_KEPT_BYTES", 300_000)
    compiler = GrammarCompiler(lambda: vocabulary)
    for index in range(20):
        constraint(compiler, choice=[f"{index:040d}"])
    assert 1 <= len(compiler._compiled) <= 4
    assert compiler._kept_bytes == sum(map(kept_bytes, compiler._compiled)) <= 300_000


def test_a_mask_of_another_size_is_refused(compiler):
    with pytest.raises(ValueError, match="the mask has 4 bytes"):
        constraint(compiler, choice=["a"]).fill(0, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"json": {"type": "object", "if": {}, "then": {}}}, "if"),
        ({"json": {"type": "string", "format": "moon-phase"}}, "moon-phase"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"$ref": "https://example.com/schema"}}, "example.com"),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, "minimum"),
        ({"json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf"),
        ({"regex": "a("}, "regex"),
        ({"regex": "(?=a)b"}, "look-ahead"),
        ({"grammar": "start: nothing"}, "nothing"),
        ({"grammar": "start: <|no_such_token|>"}, "no_such_token"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(compiler, given, said):
    """S49: unsupported keywords are named, never dropped."""
    with pytest.raises(InvalidRequestError, match=said):
        constraint(compiler, **given)


def test_an_engine_without_a_tokenizer_says_so(tokenizer):
    with pytest.raises(InvalidRequestError, match="without a tokenizer"):
        GrammarCompiler(no_vocabulary).compile('start: "a"').result()


def test_a_vocabulary_without_an_end_cannot_be_constrained(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_token_id", None)
    with pytest.raises(InvalidRequestError, match="end-of-sequence"):
        build_vocabulary(tokenizer, num_rows=tokenizer.vocab_size, eos_token_ids=[10**6])


def test_tokens_without_bytes_of_their_own_cannot_be_constrained(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "byte_plan", None)
    with pytest.raises(InvalidRequestError, match="spells its tokens by their neighbours"):
        build_vocabulary(tokenizer, num_rows=tokenizer.vocab_size, eos_token_ids=[0])
