"""`<｜tool▁calls▁begin｜>...`: DeepSeek V3 and R1, whose arguments stand in a fenced block, and V3.1, without fence.

Both are read whatever the template says. V3 writes `function<｜tool▁sep｜>NAME` and a fenced block, V3.1 writes
`NAME<｜tool▁sep｜>` and the arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.text.automaton import Automaton
from quire.text.replies.lark import LarkWriter
from quire.text.replies.reading import MAX_NAME_CHARS, Reading, is_name_part
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEP = "<｜tool▁sep｜>"
_FENCE, _FENCE_END = "```json", "```"
_END = Automaton((_CALL_END, _CALLS_END))


@dataclass(frozen=True, slots=True)
class DeepSeekFormat:
    """`has_fence`: the form a grammar forces is that of V3."""

    has_fence: bool
    marks: tuple[str, ...] = (_CALLS_BEGIN, _CALL_BEGIN)
    openers: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = (_SEP, _CALL_END, _CALLS_END)
    triggers: tuple[str, ...] = (_CALLS_BEGIN, _CALL_BEGIN)

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read calls for as long as one follows the other, and the mark behind the last."""
        source = reading.source
        if mark == _CALLS_BEGIN:
            yield from source.spaces()
            mark = yield from source.match((_CALL_BEGIN, _CALLS_END))
            if not mark:
                raise MalformedCallError("no call")
        while mark == _CALL_BEGIN:
            try:
                yield from self._read_call(reading)
            except MalformedCallError:
                if not reading.sink.is_open or source.is_exhausted:
                    raise
                yield from reading.damaged(_END)
            yield from reading.gap()
            yield from source.close((_FENCE_END,))
            yield from source.spaces()
            yield from source.close((_CALL_END,))
            yield from reading.gap()
            mark = yield from source.close((_CALL_BEGIN, _CALLS_END))

    def _read_call(self, reading: Reading) -> Wait[None]:
        source = reading.source
        kind = yield from source.run(is_name_part, MAX_NAME_CHARS)
        yield from source.expect(_SEP)
        name = yield from source.run(is_name_part, MAX_NAME_CHARS)
        yield from source.spaces()
        fence = (yield from source.match((_FENCE,))) if name else ""
        yield from source.spaces()
        # V3.1 has the arguments right behind the separator, and the name before it.
        name = name or kind
        reading.check_name(name)
        if (yield from source.peek()) != "{" and not (fence and source.is_exhausted):
            raise MalformedCallError("no arguments")
        reading.begin(name)
        yield from reading.arguments(reading.sink.arguments)
        reading.end()

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The calls between their marks, in V3's form or in V3.1's."""
        return f"{lark.literal(_CALLS_BEGIN)} {self._calls_to_end(lark, tools, parallel=parallel)}"

    def behind_trigger(self, trigger: str, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The calls to the mark behind the last; or, where the model left the first mark out, the rest of one call."""
        if trigger == _CALLS_BEGIN:
            return self._calls_to_end(lark, tools, parallel=parallel)
        return f"{self._call('', lark, tools)} ({lark.literal(_CALLS_END)})?"

    def _calls_to_end(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = self._call(_CALL_BEGIN, lark, tools)
        gap = r'"\n" ' if self.has_fence else ""
        many = f"{call} ({gap}{call})*" if parallel else call
        return f"{many} {lark.literal(_CALLS_END)}"

    def _call(self, mark: str, lark: LarkWriter, tools: Sequence[Tool]) -> str:
        """A rule for one call that begins with `mark`, where it is not there yet."""
        head, tail = ("function" + _SEP + "{}\n```json\n", "\n```") if self.has_fence else ("{}" + _SEP, "")
        calls = [
            f"{lark.literal(mark + head.replace('{}', tool.name))} {lark.arguments(tool)} "
            f"{lark.literal(tail + _CALL_END)}"
            for tool in tools
        ]
        return lark.rule("call", " | ".join(calls))
