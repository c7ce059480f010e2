"""The SQLite database of files and batches: one owner, one transaction per change, nothing half-done after a kill."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quire.base.errors import ConfigError

OPEN_STATES = ("validating", "in_progress", "finalizing", "cancelling")
"""A batch in another state is over."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    input_file_id TEXT NOT NULL, object BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL, line INTEGER NOT NULL, is_failure INTEGER NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)) WITHOUT ROWID;
"""

Row = tuple[Any, ...]


class Database:
    """The folder's database. Safe to use from several threads; every call may wait for the disk.

    Raises:
        ConfigError: from the constructor, when the folder cannot be used or another process owns it.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        try:
            self._connection, self._resources = self._open(folder)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another server; give each its own --files-dir") from error
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{folder} cannot hold files and batches: {error}; see --files-dir") from error

    @staticmethod
    def _open(folder: Path) -> tuple[sqlite3.Connection, ExitStack]:
        """The connection, and what closes it and gives up the folder; both are closed already when this raises."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as resources:
            owner = resources.enter_context((folder / "lock").open("a"))
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Autocommit, so that transactions begin and end where `transaction` says.
            connection = sqlite3.connect(folder / "batches.sqlite", check_same_thread=False, isolation_level=None)
            resources.callback(connection.close)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(_SCHEMA)
            return connection, resources.pop_all()

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._resources.close()

    def now(self) -> int:
        """The time in whole Unix seconds."""
        return int(self._clock())

    def one(self, query: str, *values: Any) -> Row | None:
        """The first row, or None."""
        with self._lock:
            row: Row | None = self._connection.execute(query, values).fetchone()
            return row

    def all(self, query: str, *values: Any) -> list[Row]:
        """Every row."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def each(self, query: str, *values: Any) -> Iterable[Row]:
        """Row after row; for the holder of `locked`."""
        return self._connection.execute(query, values)

    def write(self, statement: str, *values: Any) -> None:
        """Run a statement; for the holder of a transaction."""
        self._connection.execute(statement, values)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other thread uses the database while the block runs."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that the block writes, or nothing; a block within another is part of it."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
