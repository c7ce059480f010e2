"""What a call format is: how calls are read from a reply, and the grammar rules that force them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from quire.text.replies.lark import LarkWriter
from quire.text.replies.reading import Reading
from quire.text.replies.reasoning import ReasoningFormat
from quire.text.replies.source import Wait
from quire.text.replies.tool import Tool


class CallFormat(Protocol):
    """The way one family of models writes tool calls."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that begin calls wherever they stand."""

    @property
    def openers(self) -> tuple[str, ...]:
        """Texts that begin calls only where no other content precedes them."""

    @property
    def inner_marks(self) -> tuple[str, ...]:
        """Further texts between and behind calls, each perhaps a token of its own."""

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read the calls that `mark`, which was just read, begins.

        Raises:
            MalformedCallError: when what follows is no call, or ends within one.
        """

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The body of a grammar rule for one call of one of `tools`, or with `parallel` for one or more."""


@runtime_checkable
class TriggeredFormat(CallFormat, Protocol):
    """A format whose calls all begin with a mark, so that what follows it can be held to a grammar in free text."""

    @property
    def triggers(self) -> tuple[str, ...]:
        """The marks of which one begins every call."""

    def behind_trigger(self, trigger: str, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The body of a grammar rule for what follows a trigger, to the end of the call, or of the calls it begins."""


def all_marks(calls: CallFormat | None, reasoning: ReasoningFormat | None) -> tuple[str, ...]:
    """Every text that is markup; those that are special tokens must stay in the text that parsers get."""
    around = (reasoning.opening, reasoning.closing) if reasoning is not None else ()
    return (*calls.marks, *calls.inner_marks, *around) if calls is not None else around
