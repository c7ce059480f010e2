"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5 and 3, and the built-in demo model."""

from __future__ import annotations

from collections.abc import Sequence

from quire.text.automaton import Automaton
from quire.text.replies.json_calls import read_json_call
from quire.text.replies.lark import LarkWriter, json_call_rule
from quire.text.replies.reading import Reading
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_END = Automaton((_CLOSE,))


class HermesFormat:
    """One JSON object per call between two marks."""

    marks: tuple[str, ...] = (_OPEN,)
    openers: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = (_CLOSE,)
    triggers: tuple[str, ...] = (_OPEN,)

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read the call behind `<tool_call>`; what is neither a brace nor the closing mark then ends it."""
        source = reading.source
        yield from source.spaces()
        yield from source.expect("{")
        try:
            yield from read_json_call(reading, is_marked=True)
        except MalformedCallError:
            if not reading.sink.is_open or source.is_exhausted:
                raise
            yield from reading.damaged(_END)
        yield from reading.gap()
        while (yield from source.match(("}",))):
            yield from source.spaces()
        if not (yield from source.close((_CLOSE,))) and not source.is_exhausted:
            raise MalformedCallError("no closing mark; what follows is content")

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The calls, each on lines of its own, as the templates write them."""
        call = _call(_OPEN, lark, tools)
        return f'{call} ("\\n" {call})*' if parallel else call

    def behind_trigger(self, trigger: str, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The rest of one call, for each has a mark of its own."""
        return _call("", lark, tools)


def _call(mark: str, lark: LarkWriter, tools: Sequence[Tool]) -> str:
    """A rule for one call that begins with `mark`, where it is not there yet."""
    bodies = [json_call_rule(lark, tool, arguments_key="arguments") for tool in tools]
    body = lark.rule("body", " | ".join(bodies))
    return lark.rule("call", f"{lark.literal(mark + chr(10))} {body} {lark.literal(chr(10) + _CLOSE)}")
