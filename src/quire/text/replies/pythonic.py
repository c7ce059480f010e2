"""`[f(a=1, b="x"), g()]`: calls as Python writes them (Llama 4 and 3.2, OLMo).

The list stands where no other content precedes it, between `<|python_start|>` and `<|python_end|>`, or, one call per
line, between `<function_calls>` and `</function_calls>`. Arguments become JSON (`python_scanner.py`). A call is
announced at its first keyword or its closing parenthesis: `[see](...)` and `[f(x)]` are content. When an argument turns
out to be no literal, the call ends there, incomplete, and what follows is content.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.text.replies.json_text import quoted
from quire.text.replies.lark import NAME_PATTERN, LarkWriter, property_schemas
from quire.text.replies.python_scanner import PythonScanner
from quire.text.replies.reading import MAX_NAME_CHARS, Reading, is_name_part
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool

_START, _END = "<|python_start|>", "<|python_end|>"
_LINES, _LINES_END = "<function_calls>", "</function_calls>"


class PythonicFormat:
    """A list of Python calls with keyword arguments."""

    marks: tuple[str, ...] = (_START, _LINES)
    openers: tuple[str, ...] = ("[",)
    inner_marks: tuple[str, ...] = (_END, _LINES_END)

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read the calls and what closes them."""
        source = reading.source
        closers = yield from self._closers(mark, reading)
        separator = ""
        while True:
            yield from source.spaces()
            if separator and source.is_exhausted:
                return
            yield from self._read_call(reading)
            yield from reading.gap()
            separator = yield from source.match((",",))
            # Between <function_calls> a line break is enough.
            if not separator and (mark != _LINES or (yield from source.peek()) in ("]", "<", "")):
                break
        for closer in closers:
            if not (yield from source.close((closer,))) and not source.is_exhausted:
                raise MalformedCallError("calls without an end; what follows is content")
            yield from reading.gap()

    def _closers(self, mark: str, reading: Reading) -> Wait[tuple[str, ...]]:
        """What stands behind the calls, once the beginning of the list was read."""
        if mark == "[":
            return ("]",)
        yield from reading.source.spaces()
        bracket = yield from reading.source.match(("[",))
        return (*(("]",) if bracket else ()), _END if mark == _START else _LINES_END)

    def _read_call(self, reading: Reading) -> Wait[None]:
        source = reading.source
        name = yield from source.run(is_name_part, MAX_NAME_CHARS)
        reading.check_name(name)
        yield from source.spaces()
        yield from source.expect("(")
        yield from source.spaces()
        key = "" if (yield from source.match((")",))) else (yield from self._key(reading))
        reading.begin(name)
        if key:
            reading.sink.arguments(f"{{{quoted(key)}: ")
            scanner = PythonScanner(reading.sink.arguments)
            if not (yield from source.feed(scanner)) or not scanner.is_valid:
                raise MalformedCallError("an argument that is no literal, or the end of the text")
        reading.end()

    def _key(self, reading: Reading) -> Wait[str]:
        key = yield from reading.source.run(is_name_part, MAX_NAME_CHARS)
        yield from reading.source.spaces()
        yield from reading.source.expect("=")
        if not key:
            raise MalformedCallError("a value without a name")
        return key

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """A list of calls; each value is JSON, which the reader takes for Python.

        Keywords stand in the order of the schema, and only those that it declares.
        """
        calls = [f'{lark.literal(tool.name + "(")} {_keywords_rule(lark, tool)} ")"' for tool in tools]
        call = lark.rule("call", " | ".join(calls))
        return f'"[" {call} (", " {call})* "]"' if parallel else f'"[" {call} "]"'


def _keywords_rule(lark: LarkWriter, tool: Tool) -> str:
    """The arguments of one call. Written back to front: what may follow a first argument, and what may be the first."""
    if tool.is_free:
        pair = lark.rule("pair", f'{lark.rule("key", NAME_PATTERN)} "=" {lark.json({})}')
        return lark.rule("keywords", f'({pair} (", " {pair})*)?')
    first = more = lark.rule("none", '""')
    for name, schema, is_required in reversed(property_schemas(tool)):
        pair = lark.rule("pair", f"{lark.literal(name + '=')} {lark.json(schema)}")
        leave_out_first, leave_out_more = ("", "") if is_required else (f" | {first}", f" | {more}")
        first = lark.rule("first", f"{pair} {more}{leave_out_first}")
        more = lark.rule("more", f'", " {pair} {more}{leave_out_more}')
    return first
