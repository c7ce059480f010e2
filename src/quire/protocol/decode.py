"""From request bytes to a wire type, or to an `InvalidRequestError` that names the field.

The rules are strict: numbers are finite (SEC-14), text is valid Unicode (SEC-26), nesting is bounded (SEC-23), types
are not coerced, and a field nobody reads is refused by name rather than dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import msgspec

from quire.base.errors import InvalidRequestError

MAX_DEPTH = 128
"""Most levels of nested arrays and objects in a body."""

MAX_CONTAINERS = 500_000
MAX_VALUES = 2_000_000
"""Decoding and walking this many takes about half a second; the body's cap alone would allow twenty times as many."""

COSTLY_CONTAINERS = 2_000
COSTLY_VALUES = 100_000
"""Decoding more than this takes tens of milliseconds, which are not to pass on the event loop."""

_MAX_NAMED_FIELDS = 8
_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*?)`( - at `\$|$)")
_CONTAINERS = (list, dict, msgspec.Struct)

T = TypeVar("T", bound=msgspec.Struct)


class RequestDecoder(Generic[T]):
    """Decodes bodies of one wire type; `hints` maps fields we refuse to a reason or a remedy."""

    def __init__(self, wire_type: type[T], *, hints: dict[str, str] | None = None) -> None:
        self._type = wire_type
        self._decoder = msgspec.json.Decoder(wire_type)
        self._fields = {spec.encode_name for spec in msgspec.structs.fields(wire_type)}
        self._hints = hints or {}

    def decode(self, body: bytes) -> T:
        """The request in `body`; raises InvalidRequestError, for fields nobody knows too."""
        return self._decode(body, takes_unknown=False)[0]

    def decode_noting(self, body: bytes) -> tuple[T, tuple[str, ...]]:
        """The request in `body`, and a note for every field nobody knows; with `strict: true` those are refused.

        Fields that other servers know and this one refuses are refused here as well: leaving them out would answer
        another question. Raises InvalidRequestError.
        """
        return self._decode(body, takes_unknown=True)

    def _decode(self, body: bytes, *, takes_unknown: bool) -> tuple[T, tuple[str, ...]]:
        check_size(body)
        try:
            request, ignored = self._typed(body, takes_unknown=takes_unknown)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _not_json(error) from None
        check_depth(request)
        shown = [name[:64] for name in ignored[:_MAX_NAMED_FIELDS]]
        return request, tuple(f"unknown field: {name}; it was not used" for name in shown)

    def _typed(self, body: bytes, *, takes_unknown: bool) -> tuple[T, list[str]]:
        try:
            return self._decoder.decode(body), []
        except msgspec.ValidationError as error:
            return self._known_fields(body, error, takes_unknown=takes_unknown)

    def _known_fields(self, body: bytes, error: msgspec.ValidationError, *, takes_unknown: bool) -> tuple[T, list[str]]:
        """The request without unknown fields that are null, for they ask for nothing, and without those to be noted."""
        if not _UNKNOWN.match(str(error)):
            raise _invalid_field(error) from None
        raw: dict[str, Any] = msgspec.json.decode(body)
        asked = [name for name in raw if name not in self._fields and raw[name] is not None]
        is_strict = not takes_unknown or raw.get("strict") is True
        if asked and (is_strict or any(name in self._hints for name in asked)):
            raise self._refusal(asked)
        try:
            known = {name: value for name, value in raw.items() if name in self._fields}
            return msgspec.convert(known, self._type), asked
        except msgspec.ValidationError as second:
            raise _invalid_field(second) from None

    def _refusal(self, names: list[str]) -> InvalidRequestError:
        shown = ", ".join(name[:64] for name in names[:_MAX_NAMED_FIELDS])
        hint = next((self._hints[name] for name in names if name in self._hints), None)
        if hint is not None:
            message, code = f"not supported by this server: {shown} ({hint})", "unsupported_parameter"
        else:
            message, code = f"unknown field: {shown}; nothing is ignored silently, so remove it", "unknown_parameter"
        return InvalidRequestError(message, param=names[0], code=code)


def converted(value: dict[str, Any], wire_type: type[T], where: str) -> T:
    """A part of a request whose type only its content tells; unknown keys that are null ask for nothing.

    Raises:
        InvalidRequestError: naming the field below `where`.
    """
    fields = {spec.encode_name for spec in msgspec.structs.fields(wire_type)}
    try:
        return msgspec.convert({key: v for key, v in value.items() if key in fields or v is not None}, wire_type)
    except msgspec.ValidationError as error:
        raise _invalid_field(error, where) from None


def check_size(body: bytes) -> None:
    """Refuse bodies of so many values that building them would hold up the event loop; raises InvalidRequestError.

    Counts brackets and commas without parsing, those inside strings too: the bounds are far beyond any real text.
    """
    containers, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        raise InvalidRequestError(
            f"the body holds too many values: {containers} brackets and {values} commas; at most {MAX_CONTAINERS} "
            f"and {MAX_VALUES} are allowed"
        )


def is_costly(body: bytes) -> bool:
    """Whether decoding the body would hold up the event loop: it has many values, not just long ones."""
    return body.count(b"[") + body.count(b"{") > COSTLY_CONTAINERS or body.count(b",") > COSTLY_VALUES


def check_depth(request: msgspec.Struct) -> None:
    """Refuse free-form values nested deeper than MAX_DEPTH before anything recurses over them, such as a template.

    Walks level by level and so never recurses itself; msgspec has its own bound (about 1000) while it decodes.

    Raises:
        InvalidRequestError: naming the limit.
    """
    level: list[Any] = [request]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value) if isinstance(child, _CONTAINERS)]
        if not level:
            return
    raise InvalidRequestError(f"the body is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    return value.values() if isinstance(value, dict) else value


def _not_json(error: Exception) -> InvalidRequestError:
    if isinstance(error, RecursionError):
        return InvalidRequestError(f"the body is nested deeper than {MAX_DEPTH} levels")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequestError("the body is not valid UTF-8", code="invalid_json")
    return InvalidRequestError(f"the body is not valid JSON: {error}", code="invalid_json")


def _invalid_field(error: msgspec.ValidationError, where: str | None = None) -> InvalidRequestError:
    """A type or range error of msgspec in our words, with the path to the field, below `where`, as `param`."""
    text = str(error)
    unknown = _UNKNOWN.match(text)
    path = _PATH.search(text)
    param = ".".join(step for step in (where, path and path.group(1)) if step) or None
    what = text[: path.start()] if path else text
    if unknown:
        param = f"{param}.{unknown.group(1)}" if param else unknown.group(1)
        return InvalidRequestError(f"unknown field: {param}", param=param, code="unknown_parameter")
    if what.startswith("Object missing required field"):
        param = what.split("`")[1] if param is None else f"{param}.{what.split('`')[1]}"
        return InvalidRequestError(f"{param} is required", param=param, code="missing_required_parameter")
    if param is None:
        return InvalidRequestError(what[:1].lower() + what[1:])
    return InvalidRequestError(f"{param}: {what[:1].lower() + what[1:]}", param=param)
