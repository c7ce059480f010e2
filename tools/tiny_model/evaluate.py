"""Held-out prompts, the accuracy per task and the table of the README.

Knows: which tasks are judged and the targets. Does not know: who answers the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.tiny_model.corpus.mixture import held_episode
from tools.tiny_model.corpus.types import Answer, Episode, HeldValue, Message
from tools.tiny_model.generate import Chat, Prompt, Reply
from tools.tiny_model.heldout import Split
from tools.tiny_model.render import render
from tools.tiny_model.scoring import is_right

SEED = 7
PROMPTS_PER_TASK = 100
MAX_TOKENS = 200
EXACT_TARGET = 0.8
OVERALL_TARGET = 0.9
EXACT_TASKS: tuple[str, ...] = (
    "count",
    "sum",
    "sort numbers",
    "compare",
    "spell",
    "sort words",
    "repeat",
    "letters",
    "facts",
    "stated facts",
    "json",
    "memory",
    "long memory",
    "tool call",
    "tool result",
)
OTHER_TASKS: tuple[str, ...] = ("self", "greeting", "fallback", "story")
HELD_OUT: dict[str, str] = {
    "count": "pairs of ends",
    "sum": "both operands",
    "sort numbers": "all numbers",
    "compare": "both numbers",
    "spell": "word or name",
    "sort words": "all words",
    "repeat": "all words",
    "letters": "word",
    "facts": "phrasing of the question",
    "stated facts": "all names, places, things",
    "json": "all names, places, numbers",
    "memory": "all names, places, words, numbers",
    "long memory": "the same, 10 to 25 exchanges before",
    "tool call": "all arguments",
    "tool result": "all arguments and results",
    "self": "phrasing of the question",
    "greeting": "phrasing, names",
    "fallback": "phrasing, names, words",
    "story": "hero",
}
# Part of the prompts come after another exchange.
_AFTER_OTHERS = {"greeting": 0.3, "self": 0.3, "facts": 0.3, "fallback": 0.3, "count": 0.3, "sum": 0.3, "spell": 0.3}
_BEFORE = ("sum", "spell", "sort numbers", "count", "json", "stated facts")


@dataclass(frozen=True)
class Question:
    """A prompt with the answer that it demands and the held-out values in it."""

    task: str
    prompt: Prompt
    answer: Answer
    values: tuple[HeldValue, ...]


@dataclass(frozen=True)
class Score:
    """How many of a task's prompts were answered rightly."""

    task: str
    right: int
    asked: int

    @property
    def share(self) -> float:
        """Returns the share of right replies."""
        return self.right / self.asked


def _question(task: str, split: Split, seed: int, index: int) -> Question:
    episode = held_episode(task, split, seed, index)
    before: tuple[Message, ...] = ()
    values = episode.values
    rng = random.Random(f"{seed}/before/{task}/{index}")
    if rng.random() < _AFTER_OTHERS.get(task, 0.0):
        other: Episode = held_episode(rng.choice(_BEFORE), split, seed + 1, index)
        before, values = other.messages, other.values + values
    prompt = Prompt(before + episode.messages[:-1], episode.tools)
    return Question(task, prompt, episode.answer, values)


def questions(task: str, split: Split, count: int, seed: int = SEED) -> list[Question]:
    """Returns that many different held-out prompts of a task."""
    found: dict[str, Question] = {}
    index = 0
    while len(found) < count:
        if index > 20 * count:
            raise RuntimeError(f"{task} has fewer than {count} different prompts")
        question = _question(task, split, seed, index)
        found.setdefault(render(question.prompt.messages, question.prompt.tools, True), question)
        index += 1
    return list(found.values())


def evaluate(
    chat: Chat, split: Split, count: int, seed: int = SEED
) -> tuple[list[Score], list[tuple[Question, Reply]]]:
    """Returns the scores of all tasks and every wrong reply."""
    asked = [q for task in EXACT_TASKS + OTHER_TASKS for q in questions(task, split, count, seed)]
    replies = chat.replies([q.prompt for q in asked], MAX_TOKENS)
    right: dict[str, int] = {}
    wrong: list[tuple[Question, Reply]] = []
    for question, reply in zip(asked, replies, strict=True):
        good = is_right(question.answer, reply)
        right[question.task] = right.get(question.task, 0) + good
        if not good:
            wrong.append((question, reply))
    return [Score(task, right[task], count) for task in EXACT_TASKS + OTHER_TASKS], wrong


def overall(scores: Sequence[Score]) -> float:
    """Returns the share of right replies over all tasks."""
    return sum(s.right for s in scores) / sum(s.asked for s in scores)


def missed_targets(scores: Sequence[Score]) -> list[str]:
    """Returns the targets that the scores miss."""
    missed = [
        f"{s.task}: {s.share:.1%} is below {EXACT_TARGET:.0%}"
        for s in scores
        if s.task in EXACT_TASKS and s.share < EXACT_TARGET
    ]
    if overall(scores) < OVERALL_TARGET:
        missed.append(f"overall: {overall(scores):.1%} is below {OVERALL_TARGET:.0%}")
    return missed


def table(scores: Sequence[Score]) -> str:
    """Returns the scores as a Markdown table."""
    lines = ["| Task | Held out | Prompts | Right |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {s.task} | {HELD_OUT[s.task]} | {s.asked} | {s.share:.1%} |" for s in scores]
    lines.append(f"| **all** | | {sum(s.asked for s in scores)} | **{overall(scores):.1%}** |")
    return "\n".join(lines)
