"""Who asks for which files and batches, and which part of a list is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from quire.base.errors import InvalidRequestError
from quire.server.batches.runner import BatchRunner
from quire.server.errors import HostRefusedError
from quire.server.state import account_of, state_of

DEFAULT_PAGE, MAX_PAGE = 100, 10_000
LIST_QUERY: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    "after": {"type": "string"},
    "order": {"enum": ["asc", "desc"], "default": "desc"},
}
"""What a list takes in its query, as JSON schemas; `page_of` reads it."""


class _Stored(Protocol):
    id: str


T = TypeVar("T", bound=_Stored)


def batches_of(request: Request) -> BatchRunner:
    """The server's files and batches; raises InvalidRequestError when it keeps none."""
    runner = state_of(request).batches
    if runner is None:
        raise InvalidRequestError(
            "this server keeps no files and batches; start it with --files-dir DIR", code="unsupported_value"
        )
    return runner


def owner_of(request: Request) -> str:
    """Whose files and batches a request may see."""
    return account_of(request).tenant.name


def refuse_foreign_origin(request: Request) -> None:
    """Refuse a form that a page of another site sends, which browsers do without asking; raises HostRefusedError."""
    origin = request.headers.get("origin")
    if origin is not None and origin not in state_of(request).config.allowed_origins:
        raise HostRefusedError("uploads from this origin are not allowed; add it with --allowed-origins")


def page_of(request: Request, items: Sequence[T]) -> tuple[list[T], bool]:
    """The part of a list, given oldest first, that `limit`, `after` and `order` ask for, and whether there is more.

    Raises:
        InvalidRequestError: a limit that is no number or out of range, or another order than asc and desc.
    """
    query = request.query_params
    order, after, text = query.get("order", "desc"), query.get("after"), query.get("limit", str(DEFAULT_PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"order is {order[:16]!r}; allowed: asc, desc", param="order")
    limit = whole_number(text)
    if limit is None or not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError(f"limit must be from 1 to {MAX_PAGE}, found {text[:16]!r}", param="limit")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item.id == after]
        if not places:
            raise InvalidRequestError(f"after names no item of this list: {after[:80]!r}", param="after")
        ordered = ordered[places[0] + 1 :]
    return ordered[:limit], len(ordered) > limit


def whole_number(text: str) -> int | None:
    """A number of at most nine plain digits; None for other text, which `int` may refuse in ways of its own."""
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else None
