"""What a check can come to: passed, failed with what was wanted and found, or skipped with the reason.

A check passes by returning and otherwise raises; nothing here talks to a server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from quire.base.errors import QuireError

Status = Literal["passed", "failed", "skipped"]
T = TypeVar("T")
_MAX_SHOWN = 200


class FailedCheckError(QuireError):
    """The server does not do what the line asks; the message says what was wanted and what was found."""


class SkippedCheckError(QuireError):
    """The line cannot be judged on this server, or was not asked for; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line's outcome; `detail` is empty, a note, what went wrong, or why it was skipped."""

    line: str
    tag: str
    section: str
    sentence: str
    status: Status
    detail: str
    seconds: float


def require(condition: bool, wanted: str, found: object) -> None:
    """Go on if the condition holds; raises FailedCheckError with both sides."""
    if not condition:
        raise FailedCheckError(f"wanted {wanted}; found {shown(found)}")


def member(holder: object, key: str, kind: type[T], where: str) -> T:
    """`holder[key]` of a JSON object, of the wanted type (a bool is no int); raises FailedCheckError."""
    require(isinstance(holder, dict) and key in holder, f"{where} with a member {key!r}", holder)
    assert isinstance(holder, dict), "just required"
    value = holder[key]
    fits = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    require(fits, f"{where}.{key} to be {_JSON_NAMES.get(kind, kind.__name__)}", _as_json(value))
    assert isinstance(value, kind), "just required"
    return value


def shown(value: object) -> str:
    """A value as one short line."""
    text = value if isinstance(value, str) else _as_json(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return repr(value)


_JSON_NAMES: dict[type[Any], str] = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
