"""From what a request asks to a grammar as text, in the form that `llguidance` reads.

The grammar is only written here, within bounds of size and nesting. Whether it is one, and whether it can be compiled
in bounded time, is found out in a process that can be killed (`text/grammar_checker.py`); what it allows next is known
to `text/grammar_matcher.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.base.structured import FIELD, MAX_CHOICES, MAX_TAGS, StructuredOutputsParams

MAX_GRAMMAR_BYTES = 256 * 2**10
MAX_REGEX_BYTES = 16 * 2**10
MAX_GBNF_BYTES = 32 * 2**10
"""GBNF is converted on the event loop."""
MAX_DEPTH = 64
"""Most levels of nesting in a schema, counting every array and object."""

WHITESPACE = r"( |\n {0,24})?"
"""White space between the elements of JSON: none, a space, or a new line with its indentation.

JSON allows any amount, and a model that gets lost in white space writes nothing else until its limit
(vllm-project/vllm#12122 and others); this holds what models write."""

_LARK_START = re.compile(r"^start[ \t]*:(?!:=)", re.MULTILINE)
_OPTIONS = "x-guidance"
_VALUES = frozenset({"const", "default", "enum", "examples"})
"""Keywords that hold values and not schemas."""
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords that hold schemas by names of the author's choice."""


def grammar_of(params: StructuredOutputsParams) -> str:
    """The grammar a request's constraint means.

    Raises:
        InvalidRequestError: the constraint is too large, nested too deeply or of an unknown form; `param` names it.
    """
    write = _WRITERS[params.kind]
    grammar = write(params)
    if len(grammar) > MAX_GRAMMAR_BYTES:
        raise _refusal(params.kind, f"is larger than {MAX_GRAMMAR_BYTES} bytes once written as a grammar")
    return grammar


def json_schema_grammar(schema: Mapping[str, Any], *, whitespace: str = WHITESPACE, where: str = "json") -> str:
    """The grammar of JSON texts under a schema; raises InvalidRequestError as `checked_schema`."""
    whole = checked_schema(schema, whitespace=whitespace, where=where)
    return json.dumps({"grammars": [{"json_schema": whole}]}, ensure_ascii=False)


def inline_schema(schema: Mapping[str, Any], *, whitespace: str = WHITESPACE, where: str = "json") -> str:
    """A schema as part of a larger grammar; raises InvalidRequestError as `checked_schema`."""
    return f"%json {json.dumps(checked_schema(schema, whitespace=whitespace, where=where), ensure_ascii=False)}"


def checked_schema(schema: Mapping[str, Any], *, whitespace: str, where: str) -> dict[str, Any]:
    """The schema with the compiler's options, under which nothing it cannot enforce is let pass.

    Raises:
        InvalidRequestError: the schema is nested too deeply, or sets options of the compiler itself.
    """
    if _OPTIONS in schema:
        raise _refusal(where, f"may not hold {_OPTIONS!r}: the key sets options of the compiler")
    check_bounds(schema, where)
    options = {"whitespace_pattern": whitespace, "lenient": False, "coerce_one_of": False}
    return {**without_defaults(dict(schema)), _OPTIONS: options}


def without_defaults(schema: Any) -> Any:
    """The schema without `uniqueItems: false`, which says what holds anyway and which the compiler refuses by name."""
    if isinstance(schema, list):
        return [without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if not (name == "uniqueItems" and value is False)}
    return {name: _part_without_defaults(name, value) for name, value in kept.items()}


def _part_without_defaults(keyword: str, value: Any) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _NAMED and isinstance(value, dict):  # its keys are names, of a property `uniqueItems` too
        return {name: without_defaults(schema) for name, schema in value.items()}
    return without_defaults(value)


def check_bounds(schema: Any, where: str) -> None:
    """Refuse values nested deeper than MAX_DEPTH or larger than a grammar may be, before anything recurses over them.

    Goes level by level, and stops once it has seen too much. Raises InvalidRequestError.
    """
    level, room = [schema], MAX_GRAMMAR_BYTES
    for _ in range(MAX_DEPTH):
        below = []
        for value in level:
            children = value.values() if isinstance(value, Mapping) else value
            room -= len(children) + (sum(map(len, map(str, value))) if isinstance(value, Mapping) else 0)
            if room < 0:
                break
            below += [child for child in children if isinstance(child, Mapping | list)]
            room -= sum(len(child) for child in children if isinstance(child, str))
        if room < 0:
            raise _refusal(where, f"is larger than {MAX_GRAMMAR_BYTES} bytes")
        level = below
        if not level:
            return
    raise _refusal(where, f"is nested deeper than {MAX_DEPTH} levels")


def literal(text: str) -> str:
    """A text as a literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _json(params: StructuredOutputsParams) -> str:
    schema = _object(params.json, "json")
    return json_schema_grammar(schema, whitespace=params.whitespace_pattern or WHITESPACE)


def _json_object(params: StructuredOutputsParams) -> str:
    return json_schema_grammar({"type": "object"}, whitespace=params.whitespace_pattern or WHITESPACE)


def _regex(params: StructuredOutputsParams) -> str:
    pattern = params.regex or ""
    if len(pattern.encode("utf-8", "surrogatepass")) > MAX_REGEX_BYTES:
        raise _refusal("regex", f"is longer than {MAX_REGEX_BYTES} bytes")
    # The whole output has to match, so anchors at its ends say nothing new, and the compiler knows none.
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not _ends_escaped(pattern):
        pattern = pattern[:-1]
    from llguidance import LLMatcher  # only for requests that need it: a server starts without

    grammar: str = LLMatcher.grammar_from_regex(pattern)
    return grammar


def _choice(params: StructuredOutputsParams) -> str:
    choices = params.choice or []
    if len(choices) > MAX_CHOICES:
        raise _refusal("choice", f"takes at most {MAX_CHOICES} texts, found {len(choices)}")
    return "start: " + " | ".join(map(literal, dict.fromkeys(choices)))


def _grammar(params: StructuredOutputsParams) -> str:
    grammar = params.grammar or ""
    # Texts within a grammar of Lark may hold the sign that tells GBNF; only Lark has a rule like this.
    is_lark = "::=" not in grammar or _LARK_START.search(grammar) is not None
    most = MAX_GRAMMAR_BYTES if is_lark else MAX_GBNF_BYTES
    if len(grammar) > most:
        raise _refusal("grammar", f"is longer than {most} characters")
    if is_lark:
        return grammar
    from llguidance import gbnf_to_lark

    try:
        converted: str = gbnf_to_lark.gbnf_to_lark(grammar)
    except (gbnf_to_lark.GbnfToLarkError, RecursionError, LookupError, ValueError) as error:
        raise _refusal("grammar", f"is not GBNF: {error}") from None
    return converted


def _structural_tag(params: StructuredOutputsParams) -> str:
    """Free text with parts under a schema: `{"structures": [{"begin", "schema", "end"}], "triggers": [...]}`."""
    tag = _object(params.structural_tag, "structural_tag")
    unknown = set(tag) - {"type", "structures", "triggers"}
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if unknown or tag.get("type", "structural_tag") != "structural_tag":
        raise _refusal("structural_tag", f"has type, structures and triggers, found {sorted(tag)}")
    if not isinstance(structures, list) or not isinstance(triggers, list) or not structures or not triggers:
        raise _refusal("structural_tag", "needs structures and triggers, both non-empty lists")
    if max(len(structures), len(triggers)) > MAX_TAGS:
        raise _refusal("structural_tag", f"takes at most {MAX_TAGS} structures and {MAX_TAGS} triggers")
    if not all(isinstance(trigger, str) and trigger for trigger in triggers):
        raise _refusal("structural_tag", "needs triggers that are non-empty texts")
    check_bounds(tag, "structural_tag")
    names, rules = [], []
    for index, structure in enumerate(structures):
        rules += _tag_rules(index, structure, triggers)
        names.append(f"tag_{index}")
    head = f"start: ({' | '.join(names)})* rest\nrest: TEXT\nTEXT: /(.|\\n)*/"
    return "\n".join([head, *rules])


def _tag_rules(index: int, structure: Any, triggers: list[str]) -> list[str]:
    if not isinstance(structure, dict) or set(structure) - {"begin", "schema", "end"}:
        raise _refusal("structural_tag", f"structures[{index}] has begin, schema and end")
    begin, schema, end = structure.get("begin"), structure.get("schema", {}), structure.get("end", "")
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, dict):
        raise _refusal("structural_tag", f"structures[{index}] needs a text begin, an object schema and a text end")
    trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
    if trigger is None:
        raise _refusal("structural_tag", f"structures[{index}].begin starts with none of the triggers")
    rest, body = begin[len(trigger) :], inline_schema(schema, where="structural_tag")
    parts = [f"tag_{index}_begin", *([literal(rest)] if rest else []), body, *([literal(end)] if end else [])]
    return [f"tag_{index}_begin[lazy]: TEXT {literal(trigger)}", f"tag_{index}: {' '.join(parts)}"]


def _object(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object that came as one or as text; `true` is the schema that allows everything."""
    if isinstance(value, str):
        if len(value) > MAX_GRAMMAR_BYTES:
            raise _refusal(where, f"is longer than {MAX_GRAMMAR_BYTES} bytes")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _refusal(where, f"is not valid JSON: {error}") from None
    if value is True:
        return {}
    if not isinstance(value, Mapping):
        raise _refusal(where, f"must be a JSON object, found {type(value).__name__}")
    return value


def _ends_escaped(pattern: str) -> bool:
    """Whether the last character stands behind an odd number of backslashes."""
    body = pattern[:-1]
    return (len(body) - len(body.rstrip("\\"))) % 2 == 1


def _refusal(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} {problem}", param=f"{FIELD}.{name}", code="invalid_grammar")


_WRITERS = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}
