"""Grammars as text, in the Lark dialect of llguidance (its docs/syntax.md); needs no llguidance to write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.text.automaton import Automaton
from quire.text.grammar import inline_schema
from quire.text.replies.json_text import quoted
from quire.text.replies.reading import is_name_part
from quire.text.replies.tool import Tool

SpecialId = Callable[[str], int | None]
"""The id of a text that is one special token of the tokenizer, else None."""

JSON_SPACE = "[ \\n]{0,24}"
"""Whitespace where JSON allows it: as much as indented arguments need, but not without end."""
NAME_PATTERN = r"/[^()\[\]{}<>\"'`,;=\s]{1,256}/"
"""What `reading.is_name_part` takes, so far as a pattern can say it."""
_SPACES = r"[ \t\r\n]*"
_REGEX_SIGNS = frozenset("\\.+*?()|[]{}^$/#&-~")


class LarkWriter:
    """Rules that are written one after the other; a special token can only be named by its id."""

    def __init__(self, special_id: SpecialId, marks: Sequence[str]) -> None:
        """`marks`: the texts that may be special tokens."""
        self._ids = {mark: token_id for mark in marks if (token_id := special_id(mark)) is not None}
        self._marks = Automaton(tuple(self._ids))
        self._rules: dict[str, str] = {}

    def rule(self, name: str, body: str, *, option: str = "") -> str:
        """Add a rule; returns its name, with a number added when it is taken."""
        unique = f"{name}_{len(self._rules)}" if name in self._rules else name
        self._rules[unique] = f"{unique}{option}: {body}"
        return unique

    def literal(self, text: str) -> str:
        """Exactly this text, which is not empty, its special tokens as tokens."""
        parts: list[str] = []
        place = 0
        while place < len(text):
            end, mark = self._marks.search(text, place)
            if mark is None:
                end = len(text)
            if end > place:
                parts.append(quoted(text[place:end]))
            if mark is not None:
                parts.append(f"<[{self._ids[mark]}]>")
            place = end + len(mark or "")
        return " ".join(parts)

    def text_through(self, name: str, mark: str, *, opening: str = "", unless: str | None = None) -> str:
        """A rule for any text up to and including the first `mark`, which is behind `opening` at its start.

        `unless`: a text that it does not begin with. White space before that text, or before the opening, is let pass.
        """
        head = f"{_SPACES}{_escaped(opening)}" if opening else ""
        if mark in self._ids:
            # Free text holds no special tokens, so the first one ends it.
            text = f"/{head}(?s:.*)/" if opening else self.text(f"{name}_text", unless=unless)
            return self.rule(name, f"{text} {self.literal(mark)}")
        pattern = f"/{head}(?s:.*){_escaped(mark)}/"
        if unless is not None:
            pattern = self._terminal(name, pattern, unless)
        return self.rule(name, pattern, option="[lazy]")

    def text(self, name: str, *, unless: str | None = None) -> str:
        """Any text, none too; `unless` as in `text_through`."""
        return "/(?s:.*)/" if unless is None else self._terminal(name, "/(?s:.*)/", unless)

    def is_special(self, mark: str) -> bool:
        """Whether a mark is one special token."""
        return mark in self._ids

    def _terminal(self, name: str, pattern: str, unless: str) -> str:
        """What the pattern matches and does not begin with `unless`; only terminals know such a thing."""
        return self.rule(name.upper(), f"{pattern} & ~/{_SPACES}{_escaped(unless)}(?s:.*)/")

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value that fits the schema."""
        return inline_schema(schema, whitespace=JSON_SPACE, where="tools")

    def nested(self, name: str, grammar: str) -> str:
        """A rule for what a whole grammar allows: one in Lark, or as `text/grammar.py` writes schemas and patterns."""
        body = f"%lark {{\n{grammar}\n}}"
        if grammar.startswith('{"grammars"'):
            (inner,) = json.loads(grammar)["grammars"]
            schema = inner.get("json_schema")
            if schema is not None:
                body = f"%json {json.dumps(schema, ensure_ascii=False)}"
            else:
                body = f"%lark {{\n{inner['lark_grammar']}\n}}"
        return self.rule(name, body)

    def arguments(self, tool: Tool) -> str:
        """A rule for the JSON object of a tool's arguments."""
        return self.rule("arguments", self.json({"type": "object"} if tool.is_free else parameters_schema(tool)))

    def finish(self, start: str) -> str:
        """The whole grammar, whose start rule has this body."""
        return "\n".join((f"start: {start}", *self._rules.values(), ""))


def _escaped(text: str) -> str:
    """A text as part of a pattern."""
    return "".join("\\" + sign if sign in _REGEX_SIGNS else sign for sign in text)


def json_call_rule(lark: LarkWriter, tool: Tool, *, arguments_key: str) -> str:
    """A rule for a call that is one JSON object, name first."""
    head = lark.literal(f'{{"name": {quoted(tool.name)}, "{arguments_key}": ')
    return lark.rule("object", f'{head} {lark.arguments(tool)} "}}"')


def parameters_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; a tool without parameters takes none.

    Raises:
        InvalidRequestError: when it does not describe an object.
    """
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if tool.parameters.get("type", "object") != "object":
        found = tool.parameters["type"]
        raise InvalidRequestError(
            f"the parameters of the function {tool.name} must be a schema of type object, found {found!r}",
            param="tools",
        )
    return {"type": "object", **tool.parameters}


def property_schemas(tool: Tool) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, schema and whether it is required, of each declared parameter; definitions go with each schema.

    Raises:
        InvalidRequestError: when the parameters are not declared one by one.
    """
    whole = parameters_schema(tool)
    properties = whole.get("properties", {})
    required = whole.get("required", [])
    is_plain = isinstance(properties, Mapping) and all(isinstance(each, Mapping | bool) for each in properties.values())
    if not is_plain or not isinstance(required, list) or not set(required) <= properties.keys():
        raise InvalidRequestError(
            f"the parameters of the function {tool.name} must be declared in `properties`, the required ones too",
            param="tools",
        )
    if not all(all(map(is_name_part, name)) for name in properties):
        raise InvalidRequestError(
            f"a parameter of the function {tool.name} has a name that this model's tool calls cannot hold",
            param="tools",
        )
    shared: dict[str, Any] = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    return [
        (name, {**shared, **(schema if isinstance(schema, Mapping) else {})}, name in required)
        for name, schema in properties.items()
        if schema is not False
    ]
