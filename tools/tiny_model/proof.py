"""Proves on the training corpus itself that the evaluation's values do not occur in it.

Knows: which values must not occur, and where. Does not know: how the split is decided.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tools.tiny_model.corpus.types import Conversation, HeldValue
from tools.tiny_model.data import conversations_of_step
from tools.tiny_model.evaluate import Question
from tools.tiny_model.heldout import split_of_number
from tools.tiny_model.recipe import Recipe
from tools.tiny_model.tokenizer import Encoder

_WORD = re.compile(r"[^\W\d_]+")
_SUM = re.compile(r"(\d+) ?(?:\+|plus) ?(\d+)")
# Values of these kinds may not occur as words anywhere; the others may not be drawn.
_TEXT_KINDS = ("word", "name", "city")


class LeakError(AssertionError):
    """A held-out value occurs in the training corpus."""


@dataclass
class CorpusTrace:
    """What a corpus contains: its words, its drawn values, the operands of its sums."""

    words: set[str] = field(default_factory=set)
    values: set[HeldValue] = field(default_factory=set)
    operands: set[int] = field(default_factory=set)
    conversations: int = 0
    tokens: int = 0

    def add(self, conversation: Conversation) -> None:
        """Adds a conversation."""
        self.conversations += 1
        text = json.dumps([conversation.messages, conversation.tools], ensure_ascii=False).replace("\\n", " ")
        self.words.update(w.lower() for w in _WORD.findall(text))
        self.operands.update(int(n) for pair in _SUM.findall(text) for n in pair)
        for episode in conversation.episodes:
            self.values.update(episode.values)


def trace_training(recipe: Recipe, encoder: Encoder, steps: int | None = None) -> CorpusTrace:
    """Returns the trace of every conversation that a recipe trains on."""
    trace = CorpusTrace()
    for step in range(recipe.steps if steps is None else steps):
        for conversation, ids, _ in conversations_of_step(
            recipe.seed, step, recipe.mixture, encoder, recipe.tokens_per_step
        ):
            trace.add(conversation)
            trace.tokens += len(ids)
    return trace


def leaks(trace: CorpusTrace, questions: Iterable[Question]) -> list[str]:
    """Returns every held-out value that occurs in the corpus."""
    found: list[str] = []
    for question in questions:
        for kind, value in question.values:
            if (kind, value) in trace.values:
                found.append(f"{question.task}: the {kind} {value!r} was drawn in training")
            if kind in _TEXT_KINDS and value.lower() in trace.words:
                found.append(f"{question.task}: the {kind} {value!r} is a word of the training text")
    found += [f"sum: {n} is an operand in training" for n in sorted(trace.operands) if split_of_number(n) != "train"]
    return found


def prove(trace: CorpusTrace, questions: Sequence[Question]) -> str:
    """Returns one line on what was compared, or raises LeakError."""
    found = leaks(trace, questions)
    if found:
        raise LeakError("; ".join(found[:20]))
    values = {v for q in questions for v in q.values}
    return (
        f"{len(values)} held-out values of {len(questions)} prompts, none of which occurs in the "
        f"{trace.conversations} training conversations ({trace.tokens} tokens, {len(trace.words)} different words)"
    )
