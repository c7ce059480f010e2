"""The records that the corpus generator hands to the trainer and to the evaluation.

Knows: what an exchange, its judged answer and a conversation are.
Does not know: how any task makes them, nor how they become tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]
HeldValue = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """What counts as right for the last reply of an episode: a kind of check and its value."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Episode:
    """One exchange on one task, ending in the reply that `answer` judges."""

    task: str
    messages: tuple[Message, ...]
    answer: Answer
    tools: tuple[Tool, ...] = ()
    values: tuple[HeldValue, ...] = field(default=())


@dataclass(frozen=True)
class Conversation:
    """Messages as a client would send them, with the episodes that they were joined from."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    episodes: tuple[Episode, ...]


def user(text: str) -> Message:
    """Returns a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Returns an assistant message."""
    return {"role": "assistant", "content": text}
