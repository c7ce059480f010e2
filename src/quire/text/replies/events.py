"""What a reply consists of, piece by piece as it becomes certain, and the whole that the pieces add up to.

Knows nothing of formats or of the wire: ids, chunks and finish reasons are the server's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A tool call's name is known; `index` counts 0, 1, 2, ... and each index begins once."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsText:
    """More of the JSON text of the arguments of the call that began last."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """No more will come for this call. `is_complete` is False when it was cut short or its arguments are damaged; its
    arguments are then what was written of them, which need not be JSON."""

    index: int
    is_complete: bool


Event = ReasoningText | ContentText | CallBegun | ArgumentsText | CallEnded


@dataclass(slots=True)
class ToolCall:
    """One whole call; `arguments` is the JSON text of an object when the call is complete."""

    name: str
    arguments: str = ""
    is_complete: bool = False


@dataclass(slots=True)
class ReplyParts:
    """What the events seen so far add up to."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> ReplyParts:
        """Take in more events, in order; returns itself."""
        for event in events:
            match event:
                case ReasoningText(text):
                    self.reasoning += text
                case ContentText(text):
                    self.content += text
                case CallBegun(_, name):
                    self.calls.append(ToolCall(name))
                case ArgumentsText(index, text):
                    self.calls[index].arguments += text
                case CallEnded(index, is_complete):
                    self.calls[index].is_complete = is_complete
        return self
