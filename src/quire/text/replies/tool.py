"""A tool as the parsers and grammars see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """A function's name and the JSON Schema of its parameters, an object."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_free: bool = False
    """A grammar lets its arguments be any object, whatever the schema says."""
