"""A judge of JSON values under the part of JSON Schema that the checks ask for; any other keyword is a mistake here."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_KEYWORDS = {"type", "properties", "required", "additionalProperties", "enum", "items", "not", "const"}


def violation(value: Any, schema: dict[str, Any], where: str = "$") -> str | None:
    """The first way in which `value` breaks `schema`, or None; raises ValueError for keywords it does not know."""
    unknown = set(schema) - _KEYWORDS
    if unknown:
        raise ValueError(f"this judge does not know {sorted(unknown)}")
    if "type" in schema and not _has_type(value, schema["type"]):
        return f"{where} is no {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        return f"{where} is not {schema['const']!r}"
    if "not" in schema and violation(value, schema["not"], where) is None:
        return f"{where} is what it must not be"
    if isinstance(value, dict):
        return _object_violation(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        found = (violation(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value))
        return next((one for one in found if one), None)
    return None


def _has_type(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and not (isinstance(value, bool) and name in ("integer", "number"))


def _object_violation(value: dict[str, Any], schema: dict[str, Any], where: str) -> str | None:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{where} lacks {missing[0]}"
    extra = [name for name in value if name not in properties]
    if extra and schema.get("additionalProperties") is False:
        return f"{where} must not have {extra[0]}"
    found = (violation(value[name], properties[name], f"{where}.{name}") for name in properties if name in value)
    return next((one for one in found if one), None)
