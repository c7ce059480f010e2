"""The one constraint on a whole reply, from what a request says of tools and of the answer's shape.

The grammars are `text/replies/grammar.py`'s; here it is decided which of them a request needs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.base.errors import InvalidRequestError
from quire.base.structured import StructuredOutputsParams
from quire.protocol.chat import ChatRequest
from quire.server.structured import field_of
from quire.text.grammar import grammar_of
from quire.text.replies.call_format import TriggeredFormat
from quire.text.replies.grammar import (
    ReplyMarks,
    forced_calls_grammar,
    shaped_answer_grammar,
    triggered_calls_grammar,
)

if TYPE_CHECKING:
    from quire.server.tool_use import ReplyFormats, ToolUse
    from quire.text.replies.tool import Tool
    from quire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReplyShape:
    """What a reply must be."""

    structured: StructuredOutputsParams | None = None
    """None: whatever the model likes."""
    is_of_tools: bool = False
    """Only the tools are in it, so a fault of the grammar is theirs."""
    notes: tuple[str, ...] = ()
    """What could not be had."""


def reply_shape(
    body: ChatRequest,
    use: ToolUse,
    formats: ReplyFormats,
    *,
    wanted: StructuredOutputsParams | None,
    tokenizer: Tokenizer,
    is_open: bool,
) -> ReplyShape:
    """The constraint on a reply; `wanted`: on the answer alone. `is_open`: the reply begins within reasoning.

    Raises:
        InvalidRequestError: a tool, or the shape asked for, that no grammar can be made of.
    """
    marks = ReplyMarks(
        calls=formats.calls,
        reasoning=formats.reasoning,
        special_id=tokenizer.special_id,
        starts_in_reasoning=is_open,
    )
    if use.is_forced:
        return _of_tools(forced_calls_grammar(marks, use.tools, parallel=use.is_parallel))
    if wanted is None:
        return _strict_calls(marks, use)
    try:
        return _shaped_answer(marks, use, wanted)
    except InvalidRequestError as error:
        error.param = field_of(body, error.param)
        raise


def _strict_calls(marks: ReplyMarks, use: ToolUse) -> ReplyShape:
    """Free text, and calls that follow their schemas where that was asked of any."""
    if not use.strict or use.choice == "none":
        return ReplyShape()
    if isinstance(marks.calls, TriggeredFormat):
        return _of_tools(triggered_calls_grammar(marks, marks.calls, _held(use), parallel=use.is_parallel))
    names = ", ".join(sorted(name[:64] for name in use.strict)[:8])
    why = (
        "how this model writes calls is not known"
        if marks.calls is None
        else "this model's calls begin as other content may"
    )
    return ReplyShape(notes=(f"strict of tools ({names}): {why}, so a schema holds only where a call is forced",))


def _shaped_answer(marks: ReplyMarks, use: ToolUse, wanted: StructuredOutputsParams) -> ReplyShape:
    """The answer in its shape, or calls instead of it."""
    tools: tuple[Tool, ...] = _held(use)
    notes: tuple[str, ...] = ()
    if not use.tools or use.choice == "none" or wanted.kind == "structural_tag":  # its free text may hold calls
        tools = ()
    elif marks.calls is None:
        notes = ("tools: how this model writes calls is not known, and the shape of the answer leaves none",)
    if marks.reasoning is None and (marks.calls is None or not tools):
        return ReplyShape(wanted, notes=notes)
    grammar = shaped_answer_grammar(marks, grammar_of(wanted), tools=tools, parallel=use.is_parallel)
    return ReplyShape(_lark(grammar), notes=notes)


def _held(use: ToolUse) -> tuple[Tool, ...]:
    """The tools as a grammar holds them: those that are not strict may be called with any arguments."""
    return tuple(tool if tool.name in use.strict else dataclasses.replace(tool, is_free=True) for tool in use.tools)


def _of_tools(grammar: str) -> ReplyShape:
    return ReplyShape(_lark(grammar), is_of_tools=True)


def _lark(grammar: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(grammar=grammar)
