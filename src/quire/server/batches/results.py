"""The results of lines: rows of the database until a batch ends, and then lines of its output files.

A row is read in small parts, so that a batch of any size never keeps others from the database for long.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from quire.protocol.batches import TokenCounts
from quire.server.batches.database import IS_OPEN, ROWS_AT_ONCE, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What became of a line."""

    line: int
    result: dict[str, Any]
    is_failure: bool
    tokens: TokenCounts = field(default_factory=TokenCounts)


class ResultStore:
    """The results of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, batch_id: str, result: LineResult, *, only_in: Collection[str] = ("in_progress",)) -> bool:
        """Keep the result of a line and count it; whether it was kept.

        It is not where the line has one, or where the batch is in another state than these: once it is cancelled or
        its files are being written, what comes is too late.

        Raises:
            StorageFullError: when the disk is full.
        """
        encoded, tokens = msgspec.json.encode(result.result), result.tokens
        with self._database.transaction():
            state = self._database.one("SELECT status FROM batches WHERE id = ?", batch_id)
            if state is None or state[0] not in only_in:
                return False
            is_new = self._database.write(
                "INSERT OR IGNORE INTO results (batch_id, line, is_failure, result) VALUES (?, ?, ?, ?)",
                *(batch_id, result.line, result.is_failure, encoded),
            )
            if not is_new:
                return False
            self._database.write(
                "UPDATE batches SET completed = completed + ?, failed = failed + ?, result_bytes = result_bytes + ?, "
                "input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?, "
                "output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ? WHERE id = ?",
                *(not result.is_failure, result.is_failure, len(encoded)),
                *(tokens.input, tokens.cached, tokens.output, tokens.reasoning, batch_id),
            )
        return True

    def answered_lines(self, batch_id: str) -> set[int]:
        """Lines of a batch that have a result."""
        return {row[0] for row in self._database.all("SELECT line FROM results WHERE batch_id = ?", batch_id)}

    def each(self, batch_id: str, *, is_failure: bool) -> Iterator[bytes]:
        """The results of one kind in the order of the lines; others may use the database in between."""
        query = (
            "SELECT line, result FROM results WHERE batch_id = ? AND is_failure = ? AND line > ? ORDER BY line LIMIT ?"
        )
        last = -1
        while rows := self._database.all(query, batch_id, is_failure, last, ROWS_AT_ONCE):
            for _, result in rows:
                yield result
            last = rows[-1][0]

    def prune(self) -> int:
        """Delete some results of batches that are over, whose files hold them; returns how many, 0 for no more."""
        over = self._database.one(
            f"SELECT batch_id FROM results WHERE batch_id NOT IN (SELECT id FROM batches WHERE {IS_OPEN})"
        )
        if over is None:
            return 0
        query = "SELECT line FROM results WHERE batch_id = ? ORDER BY line LIMIT 1 OFFSET ?"
        with self._database.transaction():
            end = self._database.one(query, over[0], ROWS_AT_ONCE)
            if end is None:
                return self._database.write("DELETE FROM results WHERE batch_id = ?", over[0])
            return self._database.write("DELETE FROM results WHERE batch_id = ? AND line < ?", over[0], end[0])
