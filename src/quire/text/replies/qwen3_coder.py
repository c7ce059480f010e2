"""`<tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>`: Qwen3-Coder.

A value is bare text, one line break at either end not counted; the tool's schema says what it means. Where a string is
allowed and nothing else, it streams as a JSON string. Any other value is held back to its end: it becomes JSON where it
reads as JSON of an allowed type (`True`, `False` and `None` count), else a string. Without a schema, what reads as JSON
is JSON. The mark `<tool_call>` may be missing, as the model often leaves it out. A call is announced with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.text.automaton import Automaton
from quire.text.replies.json_text import escaped, quoted
from quire.text.replies.lark import NAME_PATTERN, LarkWriter, property_schemas
from quire.text.replies.reading import MAX_NAME_CHARS, Reading, is_name_part
from quire.text.replies.schema_types import allowed_types, decode, fits
from quire.text.replies.source import MAX_HELD, MalformedCallError, Wait
from quire.text.replies.tool import Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_VALUE_END = Automaton((_PARAMETER_END,))
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_STRING = frozenset(("string",))


class Qwen3CoderFormat:
    """Parameters between marks of their own."""

    marks: tuple[str, ...] = (_OPEN, _FUNCTION)
    openers: tuple[str, ...] = ()
    inner_marks: tuple[str, ...] = (_CLOSE,)
    triggers: tuple[str, ...] = (_OPEN, _FUNCTION)

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read one call and the marks that close it."""
        source = reading.source
        if mark == _OPEN:
            yield from source.spaces()
            yield from source.expect(_FUNCTION)
        name = yield from source.run(is_name_part, MAX_NAME_CHARS)
        yield from source.expect(">")
        reading.check_name(name)
        reading.begin(name)
        yield from self._read_parameters(reading, _properties(reading, name))
        reading.end()
        yield from reading.gap()
        if not (yield from source.close((_CLOSE,))) and not source.is_exhausted:
            raise MalformedCallError("no closing mark; what follows is content")

    def _read_parameters(self, reading: Reading, properties: Mapping[str, Any]) -> Wait[None]:
        source, out = reading.source, reading.sink.arguments
        before = "{"
        while True:
            yield from source.spaces()
            found = yield from source.close((_PARAMETER, _FUNCTION_END, _CLOSE))
            if not found:
                raise MalformedCallError("neither another parameter nor the end of the call")
            if found != _PARAMETER:
                break
            key = yield from source.run(is_name_part, MAX_NAME_CHARS)
            yield from source.expect(">")
            out(f"{before}{quoted(key)}: ")
            before = ", "
            yield from source.match(("\n",))
            value = _Value(allowed_types(properties.get(key)), out)
            yield from source.until(_VALUE_END, value.add)
            if not (yield from source.match((_PARAMETER_END,))):
                value.cut()
                raise MalformedCallError("the text ends too early")
            value.end()
        out("{}" if before == "{" else "}")

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The calls, their parameters in the order of the schema."""
        call = _call(f"{_OPEN}\n{_FUNCTION}", lark, tools)
        return f'{call} ("\\n" {call})*' if parallel else call

    def behind_trigger(self, trigger: str, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The rest of one call, for each has a mark of its own."""
        return _call(f"\n{_FUNCTION}" if trigger == _OPEN else "", lark, tools)


def _call(head: str, lark: LarkWriter, tools: Sequence[Tool]) -> str:
    """A rule for one call; `head` is what of its beginning is not there yet."""
    calls = [
        f"{lark.literal(f'{head}{tool.name}>{chr(10)}')} {_elements(lark, tool)} "
        f"{lark.literal(f'{_FUNCTION_END}{chr(10)}{_CLOSE}')}"
        for tool in tools
    ]
    return lark.rule("call", " | ".join(calls))


def _elements(lark: LarkWriter, tool: Tool) -> str:
    """The parameters of one call. Texts are free: what a schema says of a string beyond its `enum` is not enforced,
    because a bare text is no JSON."""
    if tool.is_free:
        key, value = lark.rule("key", NAME_PATTERN), lark.text_through("value", _PARAMETER_END)
        element = lark.rule("element", f'{lark.literal(_PARAMETER)} {key} ">\\n" {value} "\\n"')
        return f"{element}*"
    elements = ['""']
    for name, schema, is_required in property_schemas(tool):
        types = allowed_types(schema)
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        head = lark.literal(f"{_PARAMETER}{name}>\n")
        if types == _STRING and choices:
            value = "(" + " | ".join(lark.literal(f"{choice}\n{_PARAMETER_END}") for choice in choices) + ")"
        elif not types or "string" in types:
            value = lark.text_through("value", _PARAMETER_END)
        else:
            value = f"{lark.rule('value', lark.json(schema))} {lark.literal(chr(10) + _PARAMETER_END)}"
        element = lark.rule("element", f'{head} {value} "\\n"')
        elements.append(element if is_required else f"{element}?")
    return " ".join(elements)


class _Value:
    """One parameter's text, written to `out` as JSON."""

    def __init__(self, types: frozenset[str], out: Callable[[str], None]) -> None:
        self._types = types
        self._out = out
        self._held: list[str] = []
        self._num_held = 0
        self._streams = False
        self._line_break = ""
        """A line break that may be the last one, which does not count."""
        if types == _STRING:
            self._stream()

    def add(self, text: str) -> None:
        """More text."""
        if self._streams:
            text = self._line_break + text
            self._line_break = "\n" if text.endswith("\n") else ""
            self._out(escaped(text.removesuffix("\n")))
            return
        self._held.append(text)
        self._num_held += len(text)
        if self._num_held > MAX_HELD:
            self._stream()

    def end(self) -> None:
        """The value is whole."""
        text = "".join(self._held).removesuffix("\n")
        self._out('"' if self._streams else _as_json(text, self._types))

    def cut(self) -> None:
        """The value is cut: what was held back is shown as it is."""
        self._out("".join(self._held))

    def _stream(self) -> None:
        """From here on it is a string."""
        self._out('"')
        held = "".join(self._held)
        self._held, self._streams = [], True
        self.add(held)


def _as_json(text: str, types: frozenset[str]) -> str:
    """JSON text of a value whose schema allows `types`; empty types allow all."""
    trimmed = text.strip()
    literal = _CONSTANTS.get(trimmed, trimmed)
    is_json, value = decode(literal)
    if is_json and (not types or fits(value, types)):
        # A quoted string that is not asked for may mean its quotation marks.
        return literal if not isinstance(value, str) else quoted(text)
    return quoted(text)


def _properties(reading: Reading, name: str) -> Mapping[str, Any]:
    properties = (reading.tools or {}).get(name, {}).get("properties")
    return properties if isinstance(properties, Mapping) else {}
