"""Which part of a list a request asks for, and the query that reads just that part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.server.batches.database import Database, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """A part of a list: at most `limit` items behind the item `after`, newest first unless `is_ascending`."""

    limit: int
    after: str | None = None
    is_ascending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What of a table is listed: rows that meet a condition, some columns of each."""

    table: str
    columns: str
    condition: str
    values: tuple[Any, ...]


def read_page(database: Database, listed: Listed, query: PageQuery) -> tuple[list[Row], bool]:
    """The rows of a page, and whether there are more behind it.

    Raises:
        InvalidRequestError: `after` names no item of the list.
    """
    values = listed.values
    condition = listed.condition
    if query.after is not None:
        found = database.one(f"SELECT number FROM {listed.table} WHERE {condition} AND id = ?", *values, query.after)
        if found is None:
            raise InvalidRequestError(f"after names no item of this list: {query.after[:80]!r}", param="after")
        condition, values = f"{condition} AND number {'>' if query.is_ascending else '<'} ?", (*values, found[0])
    order = "ASC" if query.is_ascending else "DESC"
    statement = f"SELECT {listed.columns} FROM {listed.table} WHERE {condition} ORDER BY number {order} LIMIT ?"
    rows = database.all(statement, *values, query.limit + 1)
    return rows[: query.limit], len(rows) > query.limit
