"""Which JSON types a parameter's schema allows: for formats that write every value as bare text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_OF_PYTHON = (
    (bool, "boolean"),
    (str, "string"),
    (int, "integer"),
    (float, "number"),
    (list, "array"),
    (dict, "object"),
)
_MAX_DEPTH = 16


def allowed_types(schema: Any, depth: int = 0) -> frozenset[str]:
    """The `type` names a schema allows; empty when it does not say (a `$ref`, say, or no schema at all)."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return frozenset()
    declared = schema.get("type")
    if isinstance(declared, str):
        return frozenset((declared,))
    if isinstance(declared, list):
        return frozenset(name for name in declared if isinstance(name, str))
    if "const" in schema:
        return frozenset((type_name(schema["const"]),))
    if isinstance(schema.get("enum"), list):
        return frozenset(map(type_name, schema["enum"]))
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            return _types_of_choices([allowed_types(choice, depth + 1) for choice in schema[key]], key)
    return frozenset()


def type_name(value: Any) -> str:
    """JSON Schema's name for the type of a decoded JSON value."""
    return next((name for kind, name in _OF_PYTHON if isinstance(value, kind)), "null")


def fits(value: Any, types: frozenset[str]) -> bool:
    """Whether a decoded JSON value is of one of `types`."""
    name = type_name(value)
    if name == "integer" or (isinstance(value, float) and value.is_integer()):
        return bool({"integer", "number"} & types)
    return name in types


def decode(text: str) -> tuple[bool, Any]:
    """Whether `text` is a JSON value (NaN and infinities are none), and the value."""
    try:
        return True, json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False, None


def _types_of_choices(choices: list[frozenset[str]], key: str) -> frozenset[str]:
    if key == "allOf":
        return next((types for types in choices if types), frozenset())
    # A choice that does not say what it allows may allow anything.
    return frozenset().union(*choices) if all(choices) else frozenset()


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
