"""Compiled grammars beside the step loop: which tokens a sample may draw next.

Only grammars that were compiled once before in a process of their own come here (`text/grammar_checker.py`). Compiling
happens in a thread, never in the step loop, and a grammar seen before is not compiled again.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from quire.base.constraint import TokenConstraint
from quire.base.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_KEPT_BYTES = 64 * 2**20
"""Memory of the grammars that stay compiled, as `kept_bytes` puts it; making one anew takes about a millisecond."""

MAX_LEXER_STATES = 50_000
"""States one sample's lexer may have, of 1 to 2 KB each; a grammar that needs more ends its request with an error."""


def limits() -> LLParserLimits:
    """What compiling, and one step of one sample, may cost; equal where a grammar is checked and where it runs."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def compile_grammar(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """The grammar's matcher before the first token; raises InvalidRequestError when it is none."""
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        raise InvalidRequestError(first_line(matcher.get_error()), code="invalid_grammar")
    return matcher


def check_first_token(matcher: LLMatcher) -> None:
    """Raise InvalidRequestError where a matcher lets no output begin, as that of a rule that only holds itself."""
    matcher.compute_bitmask()
    if matcher.is_error():
        raise InvalidRequestError(
            f"the grammar allows no output: {first_line(matcher.get_error())}", code="invalid_grammar"
        )


def first_line(message: str) -> str:
    """An error of the library on one line of bounded length."""
    return " ".join(message.split())[:500]


def kept_bytes(grammar: str) -> int:
    """About what a compiled grammar takes.

    Schemas of 0.5, 3 and 30 KB took 73, 166 and 683 KB under a vocabulary of 49,152: so much for each, however small.
    """
    return 64 * 2**10 + 32 * len(grammar)


class GrammarConstraint:
    """One sample's place in its grammar (a `TokenConstraint`)."""

    num_free = 0
    is_over = False

    def __init__(self, matcher: LLMatcher, num_bytes: int) -> None:
        self.failure: str | None = None
        self._matcher = matcher
        self._num_bytes = num_bytes

    @property
    def is_complete(self) -> bool:
        """Whether the output satisfies the grammar and nothing could be added to it."""
        return self.failure is None and bool(self._matcher.is_stopped())

    def fill(self, address: int, num_bytes: int) -> None:
        """Write the mask of the tokens that may come next; see `TokenConstraint.fill`."""
        if num_bytes != self._num_bytes:
            raise ValueError(f"the mask has {num_bytes} bytes, this vocabulary's has {self._num_bytes}")
        self._matcher.unsafe_compute_mask_ptr(address, num_bytes)
        self._note_failure()
        if self.failure is not None:
            ctypes.memset(address, 0, num_bytes)  # what a computation that gave up midway wrote allows nothing

    def accept(self, token_id: int) -> None:
        """Take in the token that was drawn."""
        if self.failure is None and not self._matcher.consume_token(token_id):
            self._note_failure()

    def fork(self) -> GrammarConstraint:
        """Another sample's constraint in the same state."""
        copy = GrammarConstraint(self._matcher.deep_copy(), self._num_bytes)
        copy.failure = self.failure
        return copy

    def _note_failure(self) -> None:
        if self._matcher.is_error():
            self.failure = f"the output's grammar cannot go on: {first_line(self._matcher.get_error())}"


class GrammarCompiler:
    """Compiles grammars for one vocabulary in a thread, which also builds the vocabulary when the first one comes."""

    def __init__(self, build: Callable[[], LLTokenizer]) -> None:
        self._build = build
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[str, GrammarConstraint] = OrderedDict()
        self._kept_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quire-grammar")

    def compile(self, grammar: str) -> Future[TokenConstraint]:
        """A fresh constraint under the grammar; the future fails with InvalidRequestError when it is none."""
        return self._thread.submit(self._fresh, grammar)

    def _fresh(self, grammar: str) -> TokenConstraint:
        found = self._compiled.get(grammar)
        if found is None:
            found = self._compile(grammar)
            self._keep(grammar, found)
        else:
            self._compiled.move_to_end(grammar)
        return found.fork()

    def _compile(self, grammar: str) -> GrammarConstraint:
        if self._vocabulary is None:
            self._vocabulary = self._build()
        return GrammarConstraint(compile_grammar(self._vocabulary, grammar), mask_bytes(self._vocabulary.vocab_size))

    def _keep(self, grammar: str, constraint: GrammarConstraint) -> None:
        self._compiled[grammar] = constraint
        self._kept_bytes += kept_bytes(grammar)
        while self._kept_bytes > MAX_KEPT_BYTES and len(self._compiled) > 1:
            oldest, _ = self._compiled.popitem(last=False)
            self._kept_bytes -= kept_bytes(oldest)


def mask_bytes(vocab_size: int) -> int:
    """Bytes of a mask over so many tokens: whole words of 32."""
    return (vocab_size + 31) // 32 * 4


def no_vocabulary() -> LLTokenizer:
    """The vocabulary of an engine that was built without a tokenizer; raises InvalidRequestError."""
    raise InvalidRequestError("this engine was built without a tokenizer, so it has no grammars")
