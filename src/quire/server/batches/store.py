"""Batches and the results of their lines in the database. It knows no engine: who computes is `runner.py`'s."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from quire.protocol.batches import BatchObject, RequestCounts
from quire.server.batches.database import OPEN_STATES, Database
from quire.server.batches.files import FileStore
from quire.server.errors import StoredObjectNotFoundError


class BatchStore:
    """The batches of one database. Every change is one transaction."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._database = database
        self._files = files

    def add(self, batch: BatchObject, owner: str) -> None:
        """Keep a new batch."""
        row = (batch.id, owner, batch.status, batch.input_file_id, msgspec.json.encode(batch))
        with self._database.transaction():
            self._database.write(
                "INSERT INTO batches (id, owner, status, input_file_id, object) VALUES (?, ?, ?, ?, ?)", *row
            )

    def get(self, batch_id: str, owner: str | None = None) -> BatchObject:
        """A batch with its counts, if it is the owner's or no owner is given; raises StoredObjectNotFoundError."""
        row = self._database.one("SELECT object, owner FROM batches WHERE id = ?", batch_id)
        if row is None or (owner is not None and row[1] != owner):
            raise StoredObjectNotFoundError(f"there is no batch {batch_id[:80]!r}", param="batch_id")
        return self._counted(row[0])

    def owner(self, batch_id: str) -> str:
        """Whose batch it is; raises StoredObjectNotFoundError."""
        row = self._database.one("SELECT owner FROM batches WHERE id = ?", batch_id)
        if row is None:
            raise StoredObjectNotFoundError(f"there is no batch {batch_id[:80]!r}", param="batch_id")
        return str(row[0])

    def list(self, owner: str) -> list[BatchObject]:
        """An owner's batches, oldest first."""
        rows = self._database.all("SELECT object FROM batches WHERE owner = ? ORDER BY number", owner)
        return [self._counted(row[0]) for row in rows]

    def next_open(self) -> BatchObject | None:
        """The oldest batch that is not over, whoever's it is."""
        marks = ", ".join("?" * len(OPEN_STATES))
        query = f"SELECT object FROM batches WHERE status IN ({marks}) ORDER BY number LIMIT 1"
        row = self._database.one(query, *OPEN_STATES)
        return None if row is None else self._counted(row[0])

    def num_open(self) -> int:
        """How many batches are not over."""
        marks = ", ".join("?" * len(OPEN_STATES))
        row = self._database.one(f"SELECT COUNT(*) FROM batches WHERE status IN ({marks})", *OPEN_STATES)
        return int(row[0]) if row else 0

    def change(self, batch_id: str, *, only_from: Collection[str], **changes: Any) -> BatchObject:
        """Change a batch that is in one of these states; in another it stays as it is. Returns what it is then."""
        with self._database.transaction():
            batch = self.get(batch_id)
            if batch.status not in only_from:
                return batch
            batch = msgspec.structs.replace(batch, **changes)
            self._put(batch)
            return batch

    def answered_lines(self, batch_id: str) -> set[int]:
        """Lines of a batch that have a result."""
        return {row[0] for row in self._database.all("SELECT line FROM results WHERE batch_id = ?", batch_id)}

    def add_result(self, batch_id: str, line: int, result: dict[str, Any], *, is_failure: bool) -> None:
        """Keep the result of a line; the first one counts."""
        with self._database.transaction():
            self._database.write(
                "INSERT OR IGNORE INTO results (batch_id, line, is_failure, result) VALUES (?, ?, ?, ?)",
                *(batch_id, line, is_failure, msgspec.json.encode(result)),
            )

    def finish(self, batch_id: str, **changes: Any) -> BatchObject:
        """Write the output and error files of a batch and end it, all or nothing."""
        with self._database.locked():
            batch = self.get(batch_id)
            row = self._database.one("SELECT owner FROM batches WHERE id = ?", batch_id)
            owner = str(row[0]) if row else ""
            output, failures = (self._write_results(batch_id, is_failure=kind) for kind in (False, True))
            with self._database.transaction():
                batch = msgspec.structs.replace(
                    batch,
                    output_file_id=self._file_of(output, owner, f"{batch_id}_output.jsonl"),
                    error_file_id=self._file_of(failures, owner, f"{batch_id}_error.jsonl"),
                    **changes,
                )
                self._put(batch)
            return batch

    def _put(self, batch: BatchObject) -> None:
        statement = "UPDATE batches SET status = ?, object = ? WHERE id = ?"
        self._database.write(statement, batch.status, msgspec.json.encode(batch), batch.id)

    def _write_results(self, batch_id: str, *, is_failure: bool) -> Path | None:
        """The results of one kind as a file's content, in the order of the lines; None when there are none."""
        query = "SELECT result FROM results WHERE batch_id = ? AND is_failure = ? ORDER BY line"
        path = self._files.new_content()
        with path.open("wb") as file:
            for (result,) in self._database.each(query, batch_id, is_failure):
                file.write(result + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if path.stat().st_size:
            return path
        path.unlink()
        return None

    def _file_of(self, content: Path | None, owner: str, name: str) -> str | None:
        if content is None:
            return None
        return self._files.add(content, owner=owner, filename=name, purpose="batch_output").id

    def _counted(self, encoded: bytes) -> BatchObject:
        batch = msgspec.json.decode(encoded, type=BatchObject)
        query = "SELECT is_failure, COUNT(*) FROM results WHERE batch_id = ? GROUP BY is_failure"
        counts = {bool(is_failure): count for is_failure, count in self._database.all(query, batch.id)}
        total = batch.request_counts.total
        batch.request_counts = RequestCounts(total=total, completed=counts.get(False, 0), failed=counts.get(True, 0))
        return batch


def new_batch_id() -> str:
    """A fresh id for a batch."""
    return f"batch_{uuid.uuid4().hex}"
