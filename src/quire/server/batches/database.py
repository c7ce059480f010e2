"""The SQLite database of files and batches: one owner, one transaction per change, nothing half-done after a kill."""

from __future__ import annotations

import errno
import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quire.base.errors import ConfigError
from quire.server.errors import StorageFullError

OPEN_STATES = ("validating", "in_progress", "finalizing", "cancelling")
"""A batch in another state is over."""
IS_OPEN = f"status IN ({', '.join(repr(state) for state in OPEN_STATES)})"
"""The same as a condition on a row of `batches`."""
ROWS_AT_ONCE = 256
"""Most rows that one statement reads or deletes, so that nobody waits long for the database."""

_MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    input_file_id TEXT NOT NULL, object BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL, line INTEGER NOT NULL, is_failure INTEGER NOT NULL, result BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)) WITHOUT ROWID;
""",
    f"""
ALTER TABLE batches ADD COLUMN output_lifetime INTEGER;
ALTER TABLE batches ADD COLUMN completed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN result_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
UPDATE batches SET
    completed = (SELECT COUNT(*) FROM results WHERE batch_id = batches.id AND NOT is_failure),
    failed = (SELECT COUNT(*) FROM results WHERE batch_id = batches.id AND is_failure);
UPDATE batches SET result_bytes = (SELECT COALESCE(SUM(LENGTH(result)), 0) FROM results WHERE batch_id = batches.id)
    WHERE {IS_OPEN};
CREATE INDEX files_by_owner ON files (owner, number);
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX batches_by_owner ON batches (owner, number);
CREATE INDEX batches_by_status ON batches (status, number);
CREATE INDEX batches_by_input ON batches (input_file_id);
""",
    f"""
ALTER TABLE batches ADD COLUMN ended_at INTEGER;
UPDATE batches SET ended_at = CAST(strftime('%s', 'now') AS INTEGER) WHERE NOT {IS_OPEN};
CREATE INDEX batches_by_end ON batches (ended_at) WHERE ended_at IS NOT NULL;
""",
)
"""What makes a folder of one version one of the next; `PRAGMA user_version` counts how many it has had."""

Row = tuple[Any, ...]


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a full disk raises in the block, from files or from SQLite, into StorageFullError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError("the server's disk is full; delete files, or try again later") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:  # the low byte is the primary code
            raise
        raise StorageFullError("the server's disk is full; delete files, or try again later") from error


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
            _migrate(connection, folder)
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
        """Every row; for queries that bound their number."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def write(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed; for the holder of a transaction."""
        return self._connection.execute(statement, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that the block writes, or nothing; a block within another is part of it.

        Raises:
            StorageFullError: when the disk is full; nothing was written then.
        """
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            with storage_errors():
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._roll_back()
                    raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite has rolled back some failures itself
            self._connection.execute("ROLLBACK")


def _migrate(connection: sqlite3.Connection, folder: Path) -> None:
    """Bring the folder to this version's layout, each step all or nothing; raises ConfigError for a newer one."""
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(_MIGRATIONS):
        raise ConfigError(
            f"{folder} was written by a newer version (layout {done}, known here: {len(_MIGRATIONS)}); give this one "
            f"a --files-dir of its own"
        )
    for number, script in enumerate(_MIGRATIONS[done:], done + 1):
        connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {number};COMMIT;")
