"""The two files of a batch: requests in, results out. Knows their format and how to resume; sends nothing.

Both are JSON lines in OpenAI's batch format. A result is written whole, with one flush per line, so an interruption can
tear only the last line; opening the file again mends that and tells which requests are answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from quire.base.errors import ConfigError
from quire.protocol.batches import BatchRequest, parse_request


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """Every non-blank line of the input as a request, malformed ones with their problem; raises OSError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield parse_request(text, number)


def check_ids(path: Path) -> int:
    """Count the requests of the input.

    Raises:
        ConfigError: when two lines share a custom_id, for then their results could not be told apart.
    """
    seen: dict[str, int] = {}
    total = 0
    for request in read_requests(path):
        total += 1
        if request.custom_id is None:
            continue
        if request.custom_id in seen:
            first = seen[request.custom_id]
            raise ConfigError(f"{path}: lines {first} and {request.line} have the same custom_id {request.custom_id!r}")
        seen[request.custom_id] = request.line
    return total


class ResultFile:
    """The output, opened to go on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.answered, self.num_failed, keep = _scan(path)
        """Keys of the requests that have a result, and how many of those are failures."""
        self._file = path.open("ab")
        self._file.truncate(keep)
        self._file.seek(0, os.SEEK_END)
        if keep and not _ends_with_newline(path):
            self._file.write(b"\n")

    def write(self, result: dict[str, Any]) -> None:
        """Append one result and hand it to the operating system."""
        self._file.write(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _scan(path: Path) -> tuple[set[str], int, int]:
    """Keys answered, failures among them, and the length in bytes up to which the file is sound.

    Raises:
        ConfigError: when a line other than the last is no result, for then the file is not one of ours.
    """
    answered: set[str] = set()
    num_failed = sound = 0
    if not path.exists():
        return answered, num_failed, sound
    torn: int | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if torn is not None:
                raise ConfigError(f"{path} line {torn} is no result of a batch; give another output file with -o")
            key, is_failure = _key_of(line)
            if key is None:
                torn = number
                continue
            answered.add(key)
            num_failed += is_failure
            sound += len(line)
    if torn is not None and not sound:
        raise ConfigError(f"{path} line {torn} is no result of a batch; give another output file with -o")
    return answered, num_failed, sound


def _key_of(line: bytes) -> tuple[str | None, bool]:
    """The key of a result line and whether it is a failure; None for a line that is no whole result."""
    try:
        data = json.loads(line)
        key = data["custom_id"] if data["custom_id"] is not None else data["id"]
        return str(key), data["error"] is not None or data["response"]["status_code"] >= 400
    except (ValueError, KeyError, TypeError):
        return None, False
