"""Batches in the database. It knows no engine: who computes is `runner.py`'s."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import msgspec

from quire.protocol.batches import BatchObject, RequestCounts, TokenCounts
from quire.server.batches.database import IS_OPEN, OPEN_STATES, ROWS_AT_ONCE, Database, Row
from quire.server.batches.files import Draft, FileStore
from quire.server.batches.pages import Listed, PageQuery, read_page
from quire.server.batches.results import ResultStore
from quire.server.errors import StoredObjectNotFoundError

_COLUMNS = "object, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens"


class BatchStore:
    """The batches of one database. Every change is one transaction."""

    def __init__(self, database: Database, files: FileStore, results: ResultStore) -> None:
        self._database = database
        self._files = files
        self._results = results

    def add(self, batch: BatchObject, owner: str, *, output_lifetime: int | None = None) -> None:
        """Keep a new batch, whose output files will stay for so many seconds."""
        row = (batch.id, owner, batch.status, batch.input_file_id, msgspec.json.encode(batch), output_lifetime)
        names = "id, owner, status, input_file_id, object, output_lifetime"
        with self._database.transaction():
            self._database.write(f"INSERT INTO batches ({names}) VALUES (?, ?, ?, ?, ?, ?)", *row)

    def get(self, batch_id: str, owner: str | None = None) -> BatchObject:
        """A batch with its counts, if it is the owner's or no owner is given; raises StoredObjectNotFoundError."""
        row = self._database.one(f"SELECT {_COLUMNS}, owner FROM batches WHERE id = ?", batch_id)
        if row is None or (owner is not None and row[-1] != owner):
            raise StoredObjectNotFoundError(f"there is no batch {batch_id[:80]!r}", param="batch_id")
        return _counted(row[:-1])

    def page(self, owner: str, query: PageQuery) -> tuple[list[BatchObject], bool]:
        """A part of an owner's batches, and whether there are more behind it."""
        listed = Listed(table="batches", columns=_COLUMNS, condition="owner = ?", values=(owner,))
        rows, has_more = read_page(self._database, listed, query)
        return [_counted(row) for row in rows], has_more

    def open_owners(self) -> list[str]:
        """Whose batches are not over."""
        return [row[0] for row in self._database.all(f"SELECT DISTINCT owner FROM batches WHERE {IS_OPEN}")]

    def next_open(self, owner: str) -> BatchObject | None:
        """An owner's oldest batch that is not over."""
        query = f"SELECT {_COLUMNS} FROM batches WHERE owner = ? AND {IS_OPEN} ORDER BY number LIMIT 1"
        row = self._database.one(query, owner)
        return None if row is None else _counted(row)

    def num_open(self, owner: str) -> int:
        """How many of an owner's batches are not over."""
        row = self._database.one(f"SELECT COUNT(*) FROM batches WHERE owner = ? AND {IS_OPEN}", owner)
        return int(row[0]) if row else 0

    def in_progress(self) -> list[BatchObject]:
        """All batches whose lines are being answered."""
        return [
            _counted(row) for row in self._database.all(f"SELECT {_COLUMNS} FROM batches WHERE status = 'in_progress'")
        ]

    def change(self, batch_id: str, *, only_from: Collection[str], **changes: Any) -> BatchObject:
        """Change a batch that is in one of these states; in another it stays as it is. Returns what it is then.

        Raises:
            StoredObjectNotFoundError, StorageFullError: there is none, or the disk is full.
        """
        with self._database.transaction():
            batch = self.get(batch_id)
            if batch.status not in only_from:
                return batch
            batch = msgspec.structs.replace(batch, **changes)
            self._put(batch)
            return batch

    def finish(self, batch_id: str, **changes: Any) -> BatchObject:
        """Write the output and error files of a batch that takes no more results, and end it.

        The files are written while others use the database; then one transaction makes them files and ends the batch.
        A kill before it leaves contents that no file stands for, and the batch is finished again; the results go only
        after it.

        Raises:
            StorageFullError: when the disk is full; the batch is as it was.
        """
        with ExitStack() as drafts:
            output, failures = (
                self._write_results(batch_id, drafts.enter_context(self._files.draft()), is_failure=kind)
                for kind in (False, True)
            )
            written = [draft for draft in (output, failures) if draft is not None]
            try:
                with self._database.transaction():
                    batch = msgspec.structs.replace(
                        self.get(batch_id),
                        output_file_id=self._file_of(output, batch_id, "output"),
                        error_file_id=self._file_of(failures, batch_id, "error"),
                        **changes,
                    )
                    self._put(batch)
                    self._database.write("UPDATE batches SET result_bytes = 0 WHERE id = ?", batch_id)
            except BaseException:
                for draft in written:
                    draft.is_kept = False
                raise
        return batch

    def delete_over(self) -> int:
        """Delete some batches that ended as long ago as files stay, or longer where their output files stay longer.

        Returns:
            how many, 0 for no more; without a limit of that time they stay, as files do.
        """
        retention, now = self._files.retention_seconds, self._database.now()
        if retention is None:
            return 0
        over = "ended_at <= ? AND ended_at + COALESCE(output_lifetime, 0) <= ?"
        statement = f"DELETE FROM batches WHERE number IN (SELECT number FROM batches WHERE {over} LIMIT ?)"
        with self._database.transaction():
            return self._database.write(statement, now - retention, now, ROWS_AT_ONCE)

    def _put(self, batch: BatchObject) -> None:
        ended_at = None if batch.status in OPEN_STATES else self._database.now()
        statement = "UPDATE batches SET status = ?, object = ?, ended_at = ? WHERE id = ?"
        self._database.write(statement, batch.status, msgspec.json.encode(batch), ended_at, batch.id)

    def _write_results(self, batch_id: str, draft: Draft, *, is_failure: bool) -> Draft | None:
        """The draft with the results of one kind in it; None when there are none."""
        is_empty = True
        with draft.path.open("wb") as file:
            for result in self._results.each(batch_id, is_failure=is_failure):
                file.write(result + b"\n")
                is_empty = False
        if is_empty:
            return None
        self._files.seal(draft)
        return draft

    def _file_of(self, draft: Draft | None, batch_id: str, kind: str) -> str | None:
        if draft is None:
            return None
        row = self._database.one("SELECT owner, output_lifetime FROM batches WHERE id = ?", batch_id)
        assert row is not None, "the batch that is being finished is gone"
        name = f"{batch_id}_{kind}.jsonl"
        return self._files.add(draft, owner=row[0], filename=name, purpose="batch_output", expires_after=row[1]).id


def _counted(row: Row) -> BatchObject:
    encoded, completed, failed, *tokens = row
    batch = msgspec.json.decode(encoded, type=BatchObject)
    batch.request_counts = RequestCounts(total=batch.request_counts.total, completed=completed, failed=failed)
    batch.usage = TokenCounts(*tokens).usage
    return batch


def new_batch_id() -> str:
    """A fresh id for a batch."""
    return f"batch_{uuid.uuid4().hex}"
