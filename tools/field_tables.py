"""Tables of every route and of every field that a request may have, as Markdown.

All of it is read off the server's own OpenAPI description, whose statements `tests/server/test_fields.py` puts to the
test. What a field's values mean is told in docs/openai-compat.md.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from quire.base.config import ServerConfig
from quire.protocol.anthropic import BLOCKS
from quire.protocol.responses import (
    CallItem,
    CallOutputItem,
    FlatTool,
    MessageItem,
    ReasoningItem,
    RefusalPart,
    TextPart,
)
from quire.server.app import create_app
from quire.server.openapi import REFUSED_KEY

Schema = dict[str, Any]

FREE_FORM: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "ResponsesRequest": (MessageItem, TextPart, RefusalPart, CallItem, CallOutputItem, ReasoningItem, FlatTool),
    "MessagesRequest": tuple(BLOCKS.values()),
}
"""Parts of a request that its type leaves open, for only their content tells what they are."""
_REF = "#/components/schemas/"
_NAMES = {"string": "text", "boolean": "true or false", "binary": "file"}


def description() -> Schema:
    """The OpenAPI description of a server with every route."""
    schema: Schema = create_app(None, ServerConfig(admin_key="unused")).openapi()
    free = [kind for kinds in FREE_FORM.values() for kind in kinds]
    _, components = msgspec.json.schema_components(free, ref_template=_REF + "{name}")
    schema["components"]["schemas"] |= components
    return schema


def endpoints_table() -> str:
    """Every route with its sentence."""
    lines = ["| route | |", "|---|---|"]
    for path, operations in description()["paths"].items():
        for method, operation in operations.items():
            lines.append(f"| `{method.upper()} {path}` | {_cell(operation['description'])} |")
    return "\n".join(lines) + "\n"


def fields_tables() -> str:
    """A table of fields for every body, one of every query parameter, and one for every part of a body."""
    schema = description()
    bodies = _bodies(schema)
    parts = dict.fromkeys(name for _, operation in bodies for name in _parts(schema, operation))
    blocks = [_body(schema, operation, routes=routes) for routes, operation in bodies]
    blocks += [_queries(schema), "## Parts", "", *(_part(schema, name) for name in sorted(parts))]
    return "\n".join(blocks).rstrip() + "\n"


def _bodies(schema: Schema) -> list[tuple[list[str], Schema]]:
    """Operations that take a body, those alike only once, with the routes of each."""
    found: dict[str, tuple[list[str], Schema]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                same = msgspec.json.encode((operation["requestBody"], operation.get(REFUSED_KEY))).decode()
                found.setdefault(same, ([], operation))[0].append(f"{method.upper()} {path}")
    return list(found.values())


def _body(schema: Schema, operation: Schema, *, routes: list[str]) -> str:
    ((media_type, content),) = operation["requestBody"]["content"].items()
    reference = content["schema"].get("$ref")
    body = _resolved(schema, reference) if reference else content["schema"]
    lines = [f"## {', '.join(f'`{route}`' for route in routes)}", ""]
    if media_type != "application/json":
        lines += [f"A form (`{media_type}`).", ""]
    lines += [*_rows(body), *_refusals(operation)]
    lines += ["", _unlisted(schema, operation), ""]
    return "\n".join(lines)


def _part(schema: Schema, name: str) -> str:
    part = _resolved(schema, _REF + name)
    return "\n".join([f"### {name}", "", _cell(part["description"]), "", *_rows(part), ""])


def _refusals(operation: Schema) -> list[str]:
    """A row for each remedy, with all the fields it stands for."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, hint in operation.get(REFUSED_KEY, {}).items():
        names[hint].append(f"`{name}`")
    return [f"| {', '.join(found)} | | Refused: {_cell(hint)}. |" for hint, found in names.items()]


def _rows(body: Schema) -> list[str]:
    required = set(body.get("required", ()))
    lines = ["| field | type | |", "|---|---|---|"]
    for name, field in body["properties"].items():
        status = _cell(field.get("description", "Honoured."))
        lines.append(f"| `{name}` | {type_text(field)} | {'Required. ' * (name in required)}{status} |")
    return lines


def _unlisted(schema: Schema, operation: Schema) -> str:
    """What becomes of a field that no table names: an answer with a place for warnings notes it."""
    answer = operation["responses"][200 if 200 in operation["responses"] else "200"]["content"]["application/json"]
    reference = answer["schema"].get("$ref")
    if reference and "warnings" in _resolved(schema, reference)["properties"]:
        return (
            "Any other field is noted in the answer's `warnings`, and a 400 with `strict: true`; in a part it is a 400."
        )
    return "Any other field is a 400 that names it."


def _parts(schema: Schema, operation: Schema) -> list[str]:
    """Names of the types that a body is made of."""
    references = _references(operation["requestBody"])
    if not references:
        return []
    (top,) = references
    found: dict[str, None] = {}
    waiting = [top, *(kind.__name__ for kind in FREE_FORM.get(top, ()))]
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += _references(_resolved(schema, _REF + name))
    return [name for name in found if name != top]


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    own = [node["$ref"].removeprefix(_REF)] if "$ref" in node else []
    return own + [name for item in node.values() for name in _references(item)]


def _resolved(schema: Schema, reference: str) -> Schema:
    found: Schema = schema["components"]["schemas"][reference.removeprefix(_REF)]
    return found


def _queries(schema: Schema) -> str:
    """Parameters in the query of any route."""
    routes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for entry in operation.get("parameters", ()):
                if entry["in"] == "query":
                    routes[entry["name"], type_text(entry["schema"])].append(f"`{method.upper()} {path}`")
    lines = ["## Query parameters", "", "| parameter | type | routes |", "|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {', '.join(found)} |" for (name, kind), found in routes.items()]
    return "\n".join(lines) + "\n"


def type_text(schema: Schema) -> str:
    """A JSON schema in a few words; null, which every optional field takes, is left out."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if "anyOf" in schema:
        return " or ".join(type_text(one) for one in schema["anyOf"] if one.get("type") != "null")
    if schema.get("type") == "array":
        item = type_text(schema.get("items", {}))
        return f"list of ({item})" if " or " in item else f"list of {item}"
    kind = schema.get("format", schema.get("type", "anything"))
    return _NAMES.get(kind, kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
