"""Grammars of whole replies: forced calls (`tool_choice` `required`, or one named function), and shaped answers.

Pure text; compiling it, with its limits, is the business of whoever constrains sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.base.errors import InvalidRequestError
from quire.text.replies.call_format import CallFormat, all_marks
from quire.text.replies.lark import LarkWriter, SpecialId
from quire.text.replies.reading import MAX_NAME_CHARS, is_name_part
from quire.text.replies.reasoning import ReasoningFormat
from quire.text.replies.tool import Tool

_GAP = r"(/[ \n]{1,8}/)?"
"""Whitespace between reasoning and calls."""


def forced_calls_grammar(
    calls: CallFormat | None,
    tools: Sequence[Tool],
    *,
    parallel: bool,
    special_id: SpecialId,
    reasoning: ReasoningFormat | None = None,
    starts_in_reasoning: bool = False,
) -> str:
    """A grammar (llguidance's Lark dialect) whose texts are exactly one call of one of `tools`, or with `parallel` one
    or more; each function's arguments fit its schema.

    Free text is allowed before the calls only as reasoning: the rest of the block that the prompt opened, or a block
    that the model may open itself. `special_id` says which marks are single tokens; they are written `<[id]>`.

    Raises:
        InvalidRequestError: when the model has no known call format, there are no tools, or one cannot be written.
    """
    if calls is None:
        raise InvalidRequestError(
            "tool calls cannot be forced: the chat template does not show how this model writes them; use tool_choice "
            "auto or none, or name the format in the server's settings",
            param="tool_choice",
        )
    if not tools:
        raise InvalidRequestError("tool_choice needs at least one function in tools", param="tools")
    for tool in tools:
        if not 0 < len(tool.name) <= MAX_NAME_CHARS or not all(map(is_name_part, tool.name)):
            raise InvalidRequestError(
                f"the function name {tool.name!r} holds characters no call can hold", param="tools"
            )
    lark = LarkWriter(special_id, all_marks(calls, reasoning))
    body = calls.calls_rule(lark, tools, parallel=parallel)
    return _behind_reasoning(lark, body, reasoning=reasoning, is_open=starts_in_reasoning)


def shaped_answer_grammar(
    answer: str, *, special_id: SpecialId, reasoning: ReasoningFormat, starts_in_reasoning: bool
) -> str:
    """A grammar whose texts are those of the grammar `answer`, with reasoning before them that it knows nothing of."""
    lark = LarkWriter(special_id, all_marks(None, reasoning))
    return _behind_reasoning(lark, lark.nested("answer", answer), reasoning=reasoning, is_open=starts_in_reasoning)


def _behind_reasoning(lark: LarkWriter, body: str, *, reasoning: ReasoningFormat | None, is_open: bool) -> str:
    """The whole grammar: the body, behind the rest of the block the prompt opened or one that the model may open."""
    if reasoning is None:
        return lark.finish(body)
    thought = lark.text_through("thought", reasoning.closing)
    if is_open:
        return lark.finish(f"{thought} {_GAP} {body}")
    return lark.finish(f"({lark.literal(reasoning.opening)} {thought} {_GAP})? {body}")
