"""The input of a batch: its lines one by one, and what is wrong with them before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from quire.base.errors import QuireError
from quire.protocol.batches import EMBEDDINGS_ENDPOINT, BatchError, BatchRequest, parse_request

MAX_LINES = 50_000
MAX_ERRORS = 100
"""Lines whose faults are reported when a batch is refused."""


class InputMissingError(QuireError):
    """The content of a batch's input file is gone, which no other day brings back."""


class BatchInput:
    """The input of one batch: a file whose lines are requests to one endpoint."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self._path = path
        self._endpoint = endpoint

    @contextmanager
    def requests(self) -> Iterator[Iterator[BatchRequest]]:
        """The requests while the block runs, blank lines left out; raises InputMissingError."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError as error:
            raise InputMissingError(f"the content of {self._path.name} is gone") from error
        with file:
            yield self._parsed(file)

    def _parsed(self, file: IO[bytes]) -> Iterator[BatchRequest]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_request(line.decode("utf-8", "replace"), number, (self._endpoint,))

    def examine(self) -> Examination:
        """Read the whole input once; raises InputMissingError."""
        found = Examination()
        with self.requests() as requests:
            for request in requests:
                found.take(request)
                if found.is_too_large:
                    message = f"at most {MAX_LINES} lines, and as many inputs to embed, are allowed"
                    found.problems = [BatchError(code="too_many_requests", message=message)]
                    break
        if found.total == 0:
            found.problems = [BatchError(code="empty_file", message="the input file holds no requests")]
        return found


@dataclass(slots=True)
class Examination:
    """What an input holds: how many requests, for which model, and what is wrong with them."""

    total: int = 0
    num_inputs: int = 0
    """Texts to embed; a request to another endpoint is one."""
    models: set[str | None] = field(default_factory=set)
    problems: list[BatchError] = field(default_factory=list)
    _lines: dict[str, int] = field(default_factory=dict)

    @property
    def is_too_large(self) -> bool:
        """Whether it holds more than a batch may."""
        return max(self.total, self.num_inputs) > MAX_LINES

    @property
    def model(self) -> str | None:
        """The model that all requests name."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    def take(self, request: BatchRequest) -> None:
        """Look at one more request."""
        self.total += 1
        problem, custom_id = request.problem, request.custom_id
        if custom_id is not None and (first := self._lines.setdefault(custom_id, request.line)) < request.line:
            problem = f"lines {first} and {request.line} have the same custom_id {custom_id[:80]!r}"
        if problem is not None:
            if len(self.problems) < MAX_ERRORS:
                self.problems.append(BatchError(code="invalid_request", message=problem[:500], line=request.line))
            return
        model = (request.body or {}).get("model")
        if len(self.models) < 2:
            self.models.add(model if isinstance(model, str) else None)
        self.num_inputs += _num_inputs(request)


def _num_inputs(request: BatchRequest) -> int:
    """How many texts a request embeds: a list of texts, or of lists of tokens, is as many."""
    given = (request.body or {}).get("input")
    if request.route != EMBEDDINGS_ENDPOINT or not isinstance(given, list) or not given or isinstance(given[0], int):
        return 1
    return len(given)
