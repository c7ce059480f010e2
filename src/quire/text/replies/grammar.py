"""Grammars of whole replies: forced calls (`tool_choice` `required`, or one named function), shaped answers, calls or
either of them, and free text whose calls fit their schemas.

Pure text; compiling it, with its limits, is the business of whoever constrains sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.base.errors import InvalidRequestError
from quire.text.replies.call_format import CallFormat, TriggeredFormat, all_marks
from quire.text.replies.lark import LarkWriter, SpecialId
from quire.text.replies.reading import MAX_NAME_CHARS, is_name_part
from quire.text.replies.reasoning import ReasoningFormat
from quire.text.replies.tool import Tool

_GAP = r"(/[ \n]{1,8}/)?"
"""Whitespace between reasoning and calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyMarks:
    """How a model marks calls and reasoning, and which marks are single tokens; those are written `<[id]>`."""

    calls: CallFormat | None
    reasoning: ReasoningFormat | None
    special_id: SpecialId
    starts_in_reasoning: bool = False
    """The prompt ends within reasoning."""

    def lark(self) -> LarkWriter:
        """A writer that knows the marks."""
        return LarkWriter(self.special_id, all_marks(self.calls, self.reasoning))


def forced_calls_grammar(marks: ReplyMarks, tools: Sequence[Tool], *, parallel: bool) -> str:
    """A grammar (llguidance's Lark dialect) whose texts are exactly one call of one of `tools`, or with `parallel` one
    or more; each function's arguments fit its schema.

    Free text is allowed before the calls only as reasoning: the rest of the block that the prompt opened, or a block
    that the model may open itself.

    Raises:
        InvalidRequestError: when the model has no known call format, there are no tools, or one cannot be written.
    """
    if marks.calls is None:
        raise InvalidRequestError(
            "tool calls cannot be forced: the chat template does not show how this model writes them; use tool_choice "
            "auto or none, or name the format in the server's settings",
            param="tool_choice",
        )
    if not tools:
        raise InvalidRequestError("tool_choice needs at least one function in tools", param="tools")
    _check_names(tools)
    lark = marks.lark()
    return _behind_reasoning(lark, marks.calls.calls_rule(lark, tools, parallel=parallel), marks)


def shaped_answer_grammar(marks: ReplyMarks, answer: str, *, tools: Sequence[Tool] = (), parallel: bool = True) -> str:
    """A grammar whose texts are those of the grammar `answer`, or calls of `tools`, with reasoning before either.

    Raises:
        InvalidRequestError: when a tool cannot be written.
    """
    lark = marks.lark()
    body = lark.nested("answer", answer)
    if marks.calls is not None and tools:
        _check_names(tools)
        calls = lark.rule("calls", marks.calls.calls_rule(lark, tools, parallel=parallel))
        body = lark.rule("reply", f"{calls} | {body}")
    return _behind_reasoning(lark, body, marks)


def triggered_calls_grammar(marks: ReplyMarks, calls: TriggeredFormat, tools: Sequence[Tool], *, parallel: bool) -> str:
    """A grammar of free text in which every mark that begins a call is followed by one of `tools`, its arguments under
    its schema. Reasoning comes first and knows no calls. Without `parallel` there is one call at most.

    Raises:
        InvalidRequestError: when a tool cannot be written.
    """
    _check_names(tools)
    lark = marks.lark()
    behind = {
        mark: lark.rule("behind", calls.behind_trigger(mark, lark, tools, parallel=parallel)) for mark in calls.triggers
    }

    def call(unless: str | None = None) -> str:
        """Any text, and the call in it."""
        ways = [f"{lark.text_through('begin', mark, unless=unless)} {rest}" for mark, rest in behind.items()]
        return lark.rule("text_and_call", " | ".join(ways))

    end = lark.rule("rest", lark.text("REST"))
    tail = lark.rule("tail", f"{call()}{'*' if parallel else '?'} {end}")
    reasoning = marks.reasoning
    if reasoning is None:
        return lark.finish(tail)
    opening = reasoning.opening
    if marks.starts_in_reasoning or lark.is_special(opening):
        thought = lark.text_through("thought", reasoning.closing)
        before = thought if marks.starts_in_reasoning else f"({lark.literal(opening)} {thought})?"
        return lark.finish(f"{before} {tail}")
    # An opening mark of ordinary tokens is free text as well, which must not take the reasoning's place.
    thought = lark.text_through("reasoned", reasoning.closing, opening=opening)
    free = lark.rule("free", lark.text("FREE", unless=opening))
    return lark.finish(f"{thought} {tail} | {call(opening)} {tail if parallel else end} | {free}")


def _check_names(tools: Sequence[Tool]) -> None:
    for tool in tools:
        if not 0 < len(tool.name) <= MAX_NAME_CHARS or not all(map(is_name_part, tool.name)):
            raise InvalidRequestError(
                f"the function name {tool.name!r} holds characters no call can hold", param="tools"
            )


def _behind_reasoning(lark: LarkWriter, body: str, marks: ReplyMarks) -> str:
    """The whole grammar: the body, behind the rest of the block the prompt opened or one that the model may open."""
    reasoning = marks.reasoning
    if reasoning is None:
        return lark.finish(body)
    thought = lark.text_through("thought", reasoning.closing)
    if marks.starts_in_reasoning:
        return lark.finish(f"{thought} {_GAP} {body}")
    return lark.finish(f"({lark.literal(reasoning.opening)} {thought} {_GAP})? {body}")
