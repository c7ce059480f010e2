"""What a request may ask the shape of its output to be: `StructuredOutputsParams`, named as vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from quire.base.errors import InvalidRequestError

FIELD = "structured_outputs"
MAX_CHOICES = 1024
MAX_TAGS = 256
"""Structures, and triggers, of a structural tag."""


@dataclass(kw_only=True)
class StructuredOutputsParams:
    """One constraint on the whole output; every output that is not cut off satisfies it.

    Raises:
        InvalidRequestError: from the constructor, unless exactly one constraint is given.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema, as an object or as text."""
    regex: str | None = None
    """A regular expression that the whole output matches."""
    choice: list[str] | None = None
    """The output is one of these."""
    grammar: str | None = None
    """A context-free grammar: Lark, or GBNF where it holds `::=`."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text in which certain beginnings open a part that follows a schema, such as a call of a tool."""
    whitespace_pattern: str | None = None
    """With `json` and `json_object`: a regular expression for the white space between two elements."""

    def __post_init__(self) -> None:
        """Refuse none, several, and what has nothing to apply to."""
        options = {"whitespace_pattern"}
        given = [f.name for f in fields(self) if f.name not in options and getattr(self, f.name) not in (None, False)]
        if len(given) != 1:
            allowed = ", ".join(f.name for f in fields(self) if f.name not in options)
            found = " and ".join(given) if given else "none"
            raise InvalidRequestError(f"{FIELD} takes exactly one of {allowed}; found {found}", param=FIELD)
        self.kind = given[0]
        if self.whitespace_pattern is not None and self.kind not in ("json", "json_object"):
            param = f"{FIELD}.whitespace_pattern"
            raise InvalidRequestError(f"whitespace_pattern is for json and json_object, found {self.kind}", param=param)
        if self.choice is not None and not _are_texts(self.choice):
            raise InvalidRequestError("choice must be a list of non-empty texts", param=f"{FIELD}.choice")
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise InvalidRequestError(f"{name} must be a non-empty text", param=f"{FIELD}.{name}")
        for name in ("json", "structural_tag"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | Mapping):
                raise InvalidRequestError(f"{name} must be an object or a text", param=f"{FIELD}.{name}")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, str) and v for v in values)
