"""Makes the constraint of a request from what it asks for: a grammar, a budget of reasoning, or both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from quire.base.constraint import TokenConstraint
from quire.base.errors import InvalidRequestError
from quire.base.request import EngineRequest
from quire.base.thinking import ThinkingBudget
from quire.text.grammar_matcher import GrammarCompiler, no_vocabulary
from quire.text.thinking import ThinkingConstraint, TokenSpelling


def no_spelling() -> TokenSpelling:
    """The spelling of an engine that was built without a tokenizer; raises InvalidRequestError."""
    raise InvalidRequestError("this engine was built without a tokenizer, so it knows no marks of reasoning")


class ConstraintCompiler:
    """Makes constraints beside the step loop, in threads; the vocabulary is read when the first budget comes."""

    def __init__(
        self, grammars: GrammarCompiler | None = None, spell: Callable[[], TokenSpelling] = no_spelling
    ) -> None:
        self._grammars = grammars or GrammarCompiler(no_vocabulary)
        self._spell = spell
        self._spelling: TokenSpelling | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quire-thinking")

    def compile(self, request: EngineRequest) -> Future[TokenConstraint]:
        """A fresh constraint of a request that asks for one; the future fails with InvalidRequestError."""
        grammar = None if request.grammar is None else self._grammars.compile(request.grammar)
        if request.params.thinking is None:
            assert grammar is not None, "the request asks for no constraint"
            return grammar
        return self._thread.submit(self._with_budget, request.params.thinking, grammar)

    def _with_budget(self, budget: ThinkingBudget, grammar: Future[TokenConstraint] | None) -> TokenConstraint:
        if self._spelling is None:
            self._spelling = self._spell()
        return ThinkingConstraint(budget, self._spelling, grammar=None if grammar is None else grammar.result())
