"""Files: their contents in a folder, and what is known of them in the database. Nothing here knows HTTP."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.base.errors import InvalidRequestError
from quire.protocol.batches import FileObject
from quire.server.batches.database import IS_OPEN, Database, Row, storage_errors
from quire.server.batches.pages import Listed, PageQuery, read_page
from quire.server.errors import StorageQuotaError, StoredObjectNotFoundError

_COLUMNS = "id, owner, filename, purpose, bytes, created_at, expires_at"
_READ_BY_OPEN_BATCH = f"SELECT input_file_id FROM batches WHERE {IS_OPEN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimits:
    """How much may be kept, and how long; None is without a limit."""

    total_bytes: int | None = None
    tenant_bytes: int | None = None
    retention_seconds: int | None = None
    """Of files that were not given a time of their own."""


@dataclass(slots=True)
class Draft:
    """A file to be: its content is written to `path`, sealed, and then `FileStore.add` makes it a file."""

    file_id: str
    path: Path
    size: int = -1
    """Known when it is sealed."""
    is_kept: bool = False
    """Whether the content stays when the block of the draft ends."""


class FileStore:
    """The files of one database. Contents that no file stands for are dropped when it opens."""

    def __init__(self, database: Database, limits: StorageLimits | None = None) -> None:
        self._database = database
        self._limits = limits or StorageLimits()
        self._contents = database.folder / "files"
        self._contents.mkdir(exist_ok=True, mode=0o700)
        self._drop_orphans()
        self.delete_expired()

    @property
    def retention_seconds(self) -> int | None:
        """How long files stay that were not given a time of their own; None without a limit."""
        return self._limits.retention_seconds

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A file to write in the block; what was not made a file by its end is deleted.

        Raises:
            StorageFullError: when the disk is full.
        """
        file_id = f"file-{uuid.uuid4().hex}"
        draft = Draft(file_id, self.content(file_id))
        try:
            with storage_errors():
                yield draft
        finally:
            if not draft.is_kept:
                draft.path.unlink(missing_ok=True)

    def add(
        self, draft: Draft, *, owner: str, filename: str, purpose: str, expires_after: int | None = None
    ) -> FileObject:
        """Make a sealed draft a file that stays for `expires_after` seconds.

        Whoever has a transaction around this says that the draft is not kept, should it fail.

        Raises:
            StorageFullError: when the disk is full.
        """
        assert draft.size >= 0, "the draft is not sealed"
        now, size = self._database.now(), draft.size
        lifetime = self.retention_seconds if expires_after is None else expires_after
        row = (draft.file_id, owner, filename, purpose, size, now, None if lifetime is None else now + lifetime)
        with self._database.transaction():
            self._database.write(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
        draft.is_kept = True
        return _object(row)

    def add_within_quota(
        self, draft: Draft, *, owner: str, filename: str, purpose: str, expires_after: int | None = None
    ) -> FileObject:
        """As `add`, if the owner's files and all files stay within their limits.

        Raises:
            StorageQuotaError, StorageFullError: they would not, or the disk is full.
        """
        self.seal(draft)
        try:
            with self._database.transaction():
                self.check_room(owner, draft.size)
                return self.add(draft, owner=owner, filename=filename, purpose=purpose, expires_after=expires_after)
        except BaseException:
            draft.is_kept = False
            raise

    def seal(self, draft: Draft) -> None:
        """See to it that the content is on the disk, and found there, before a file stands for it; takes a while.

        Raises:
            StorageFullError: when the disk is full.
        """
        with storage_errors():
            for place in (draft.path, self._contents):
                descriptor = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        draft.size = draft.path.stat().st_size

    def check_room(self, owner: str, size: int) -> None:
        """Raise StorageQuotaError unless so many more bytes may be kept for an owner."""
        limits = self._limits
        for most, whose, name, setting in (
            (limits.tenant_bytes, owner, "your files", "files_tenant_quota_bytes"),
            (limits.total_bytes, None, "all files", "files_quota_bytes"),
        ):
            if most is not None and (found := self.used_bytes(whose)) + size > most:
                raise StorageQuotaError(
                    f"{name} take {found} bytes, and with {size} more they would take more than the {most} allowed "
                    f"(setting: {setting}); delete some first"
                )

    def used_bytes(self, owner: str | None = None) -> int:
        """Bytes of files, and of results that are not in a file yet; of one owner, or of all."""
        condition, values = ("", ()) if owner is None else (" WHERE owner = ?", (owner,))
        tables = (("bytes", "files"), ("result_bytes", "batches"))
        rows = [
            self._database.one(f"SELECT SUM({column}) FROM {table}{condition}", *values) for column, table in tables
        ]
        return sum(row[0] or 0 for row in rows if row is not None)

    def get(self, file_id: str, owner: str | None = None) -> FileObject:
        """A file, if it is the owner's or no owner is given; raises StoredObjectNotFoundError."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM files WHERE id = ?", file_id)
        if row is None or (owner is not None and row[1] != owner) or self._is_expired(row):
            raise StoredObjectNotFoundError(f"there is no file {file_id[:80]!r}", param="file_id")
        return _object(row)

    def page(self, owner: str, query: PageQuery, purpose: str | None = None) -> tuple[list[FileObject], bool]:
        """A part of an owner's files, of one purpose or of all, and whether there are more behind it."""
        condition = "owner = ? AND (expires_at IS NULL OR expires_at > ?)"
        values: tuple[str | int, ...] = (owner, self._database.now())
        if purpose is not None:
            condition, values = f"{condition} AND purpose = ?", (*values, purpose)
        listed = Listed(table="files", columns=_COLUMNS, condition=condition, values=values)
        rows, has_more = read_page(self._database, listed, query)
        return [_object(row) for row in rows], has_more

    def content(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._contents / file_id

    def delete(self, file_id: str, owner: str) -> None:
        """Delete a file that no open batch reads.

        Raises:
            StoredObjectNotFoundError, InvalidRequestError: there is none, or it is in use.
        """
        query = f"SELECT id FROM batches WHERE input_file_id = ? AND {IS_OPEN}"
        with self._database.transaction():
            self.get(file_id, owner)
            reader = self._database.one(query, file_id)
            if reader is not None:
                raise InvalidRequestError(f"the open batch {reader[0]} reads this file; cancel it first", code="in_use")
            self._database.write("DELETE FROM files WHERE id = ?", file_id)
        self.content(file_id).unlink(missing_ok=True)

    def delete_expired(self) -> int:
        """Delete files that are over, unless an open batch reads them; returns how many."""
        condition = f"expires_at <= ? AND id NOT IN ({_READ_BY_OPEN_BATCH})"
        with self._database.transaction():
            rows = self._database.all(f"SELECT id FROM files WHERE {condition}", self._database.now())
            for (file_id,) in rows:
                self._database.write("DELETE FROM files WHERE id = ?", file_id)
        for (file_id,) in rows:
            self.content(file_id).unlink(missing_ok=True)
        return len(rows)

    def _is_expired(self, row: Row) -> bool:
        return row[6] is not None and row[6] <= self._database.now()

    def _drop_orphans(self) -> None:
        """Delete contents that a kill left behind."""
        for path in self._contents.iterdir():
            if self._database.one("SELECT 1 FROM files WHERE id = ?", path.name) is None:
                path.unlink(missing_ok=True)


def _object(row: Row) -> FileObject:
    file_id, _, filename, purpose, size, created_at, expires_at = row
    return FileObject(
        id=file_id, filename=filename, purpose=purpose, bytes=size, created_at=created_at, expires_at=expires_at
    )
