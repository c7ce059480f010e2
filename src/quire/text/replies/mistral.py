"""`[TOOL_CALLS]`: Mistral's list of JSON objects, and the newer name with `[ARGS]` before its arguments.

Both are read whatever the template says: behind the mark comes a list, an object, or a name. The newer form repeats the
mark for every call, may give an id behind `[CALL_ID]`, which is dropped, and may leave `[ARGS]` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.text.automaton import Automaton
from quire.text.replies.json_calls import read_json_call
from quire.text.replies.lark import LarkWriter, json_call_rule
from quire.text.replies.reading import MAX_NAME_CHARS, Reading, is_name_part
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool

_CALLS, _CALL_ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_END = Automaton((_CALLS,))


@dataclass(frozen=True, slots=True)
class MistralFormat:
    """`names_first`: the form a grammar forces is the newer one."""

    names_first: bool
    marks: tuple[str, ...] = (_CALLS,)
    openers: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = (_CALL_ID, _ARGS)
    triggers: tuple[str, ...] = (_CALLS,)

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read one list of calls, or one call."""
        source = reading.source
        yield from source.spaces()
        found = yield from source.match(("[", "{"))
        try:
            if found == "[":
                yield from self._read_list(reading)
            elif found == "{":
                yield from read_json_call(reading, is_marked=True)
            else:
                yield from self._read_named(reading)
        except MalformedCallError:
            if not reading.sink.is_open or source.is_exhausted:
                raise
            yield from reading.damaged(_END)

    def _read_list(self, reading: Reading) -> Wait[None]:
        source = reading.source
        yield from source.spaces()
        if (yield from source.match(("]",))):
            return
        while True:
            yield from source.expect("{")
            yield from read_json_call(reading, is_marked=True)
            yield from reading.gap()
            if not (yield from source.match((",",))):
                break
            yield from source.spaces()
            if source.is_exhausted:
                return
        if not (yield from source.match(("]",))) and not source.is_exhausted:
            raise MalformedCallError("calls without an end; what follows is content")

    def _read_named(self, reading: Reading) -> Wait[None]:
        source = reading.source
        name = yield from source.run(is_name_part, MAX_NAME_CHARS)
        reading.check_name(name)
        yield from source.spaces()
        if (yield from source.match((_CALL_ID,))):
            yield from source.run(is_name_part, MAX_NAME_CHARS)
        found = yield from source.match((_ARGS,))
        yield from source.spaces()
        if (yield from source.peek()) != "{" and not (found and source.is_exhausted):
            raise MalformedCallError("no arguments")
        reading.begin(name)
        yield from reading.arguments(reading.sink.arguments)
        reading.end()

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """A list of objects, or names with arguments."""
        if self.names_first:
            call = _named_call(_CALLS, lark, tools)
            return f"{call}+" if parallel else call
        return f"{lark.literal(_CALLS)} {_list_of_calls(lark, tools, parallel=parallel)}"

    def behind_trigger(self, trigger: str, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """A list of objects, or the rest of one call, for each has a mark of its own."""
        return _named_call("", lark, tools) if self.names_first else _list_of_calls(lark, tools, parallel=parallel)


def _named_call(mark: str, lark: LarkWriter, tools: Sequence[Tool]) -> str:
    """A rule for one call of the newer form that begins with `mark`, where it is not there yet."""
    calls = [f"{lark.literal(mark + tool.name + _ARGS)} {lark.arguments(tool)}" for tool in tools]
    return lark.rule("call", " | ".join(calls))


def _list_of_calls(lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
    bodies = [json_call_rule(lark, tool, arguments_key="arguments") for tool in tools]
    call = lark.rule("call", " | ".join(bodies))
    many = f'{call} (", " {call})*' if parallel else call
    return f'"[" {many} "]"'
