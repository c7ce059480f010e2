"""Who asks for which files and batches, and which part of a list is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from quire.base.errors import InvalidRequestError
from quire.server.batches.pages import PageQuery
from quire.server.batches.runner import BatchRunner
from quire.server.errors import HostRefusedError
from quire.server.state import account_of, state_of


@dataclass(frozen=True, slots=True)
class PageSize:
    """How many items a list shows when nothing is asked for, and at most."""

    default: int
    most: int

    @property
    def query(self) -> dict[str, dict[str, Any]]:
        """What such a list takes in its query, as JSON schemas; `page_query` reads it."""
        return {
            "limit": {"type": "integer", "minimum": 1, "maximum": self.most, "default": self.default},
            "after": {"type": "string"},
            "order": {"enum": ["asc", "desc"], "default": "desc"},
        }


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


def page_query(request: Request, size: PageSize) -> PageQuery:
    """The part of a list that `limit`, `after` and `order` ask for.

    Raises:
        InvalidRequestError: a limit that is no number or out of range, or another order than asc and desc.
    """
    query = request.query_params
    order, text = query.get("order", "desc"), query.get("limit", str(size.default))
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"order is {order[:16]!r}; allowed: asc, desc", param="order")
    limit = whole_number(text)
    if limit is None or not 1 <= limit <= size.most:
        raise InvalidRequestError(f"limit must be from 1 to {size.most}, found {text[:16]!r}", param="limit")
    return PageQuery(limit=limit, after=query.get("after"), is_ascending=order == "asc")


def whole_number(text: str) -> int | None:
    """A number of at most nine plain digits; None for other text, which `int` may refuse in ways of its own."""
    return int(text) if len(text) <= 9 and text.isascii() and text.isdigit() else None
