"""Files: their contents in a folder, and what is known of them in the database. Nothing here knows HTTP."""

from __future__ import annotations

import uuid
from pathlib import Path

from quire.base.errors import InvalidRequestError
from quire.protocol.batches import FileObject
from quire.server.batches.database import OPEN_STATES, Database, Row
from quire.server.errors import StoredObjectNotFoundError

_COLUMNS = "id, owner, filename, purpose, bytes, created_at, expires_at"


class FileStore:
    """The files of one database. Contents that no file stands for are dropped when it opens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._contents = database.folder / "files"
        self._contents.mkdir(exist_ok=True, mode=0o700)
        self._drop_orphans()

    def new_content(self) -> Path:
        """A path to write a content to, before `add` makes it a file."""
        return self._contents / f"new-{uuid.uuid4().hex}"

    def add(
        self, content: Path, *, owner: str, filename: str, purpose: str, expires_after: int | None = None
    ) -> FileObject:
        """Make the content at a path of `new_content` a file; `expires_after` is in seconds."""
        file_id, now, size = f"file-{uuid.uuid4().hex}", self._database.now(), content.stat().st_size
        expires_at = None if expires_after is None else now + expires_after
        row = (file_id, owner, filename, purpose, size, now, expires_at)
        content.rename(self.content(file_id))  # first, so that a file in the database always has a content
        with self._database.transaction():
            self._database.write(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
        return _object(row)

    def get(self, file_id: str, owner: str | None = None) -> FileObject:
        """A file, if it is the owner's or no owner is given; raises StoredObjectNotFoundError."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM files WHERE id = ?", file_id)
        if row is None or (owner is not None and row[1] != owner) or self._is_expired(row):
            raise StoredObjectNotFoundError(f"there is no file {file_id[:80]!r}", param="file_id")
        return _object(row)

    def list(self, owner: str) -> list[FileObject]:
        """An owner's files, oldest first."""
        rows = self._database.all(f"SELECT {_COLUMNS} FROM files WHERE owner = ? ORDER BY number", owner)
        return [_object(row) for row in rows if not self._is_expired(row)]

    def content(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._contents / file_id

    def delete(self, file_id: str, owner: str) -> None:
        """Delete a file that no open batch reads.

        Raises:
            StoredObjectNotFoundError, InvalidRequestError: there is none, or it is in use.
        """
        marks = ", ".join("?" * len(OPEN_STATES))
        query = f"SELECT id FROM batches WHERE input_file_id = ? AND status IN ({marks})"
        with self._database.transaction():
            self.get(file_id, owner)
            reader = self._database.one(query, file_id, *OPEN_STATES)
            if reader is not None:
                raise InvalidRequestError(f"the open batch {reader[0]} reads this file; cancel it first", code="in_use")
            self._database.write("DELETE FROM files WHERE id = ?", file_id)
        self.content(file_id).unlink(missing_ok=True)

    def stored_bytes(self) -> int:
        """The bytes of all files."""
        row = self._database.one("SELECT COALESCE(SUM(bytes), 0) FROM files")
        return int(row[0]) if row else 0

    def _is_expired(self, row: Row) -> bool:
        return row[6] is not None and row[6] <= self._database.now()

    def _drop_orphans(self) -> None:
        """Delete files that are over, unless an open batch reads them, and contents that a kill left behind."""
        marks = ", ".join("?" * len(OPEN_STATES))
        read = f"SELECT input_file_id FROM batches WHERE status IN ({marks})"
        statement = f"DELETE FROM files WHERE expires_at <= ? AND id NOT IN ({read})"
        with self._database.transaction():
            self._database.write(statement, self._database.now(), *OPEN_STATES)
        known = {row[0] for row in self._database.all("SELECT id FROM files")}
        for path in self._contents.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)


def _object(row: Row) -> FileObject:
    file_id, _, filename, purpose, size, created_at, expires_at = row
    return FileObject(
        id=file_id, filename=filename, purpose=purpose, bytes=size, created_at=created_at, expires_at=expires_at
    )
