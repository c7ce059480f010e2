"""Threads for work on text, so that neither the event loop nor short texts wait for long ones (SEC-22).

    short   what most requests bring: one thread tokenizes while another renders
    long    texts that take tenths of seconds, and templates that requests bring; they queue among themselves
    body    requests of so many values that building them takes as long

The event loop's own threads stay free for files. Knows sizes, not what is done with a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from quire.base.errors import InvalidRequestError, OverloadedError

T = TypeVar("T")

INLINE_CHARACTERS = 4096
"""Shorter texts are tokenized on the loop: that takes less time than handing them to a thread."""
LONG_CHARACTERS = 64 * 2**10
"""Longer texts are long; this many take some ten milliseconds."""
MAX_CHARACTERS = 8 * 2**20
"""Most characters of one text; a million tokens are about half of it."""
MAX_PENDING_CHARACTERS = 64 * 2**20
"""Characters that may wait in the long lane; more are refused as overload."""
RETRY_SECONDS = 5.0


class Lane(enum.Enum):
    """Who queues behind whom."""

    SHORT = "short"
    LONG = "long"
    BODY = "body"


_THREADS = {Lane.SHORT: 2, Lane.LONG: max(1, min(4, (os.cpu_count() or 1) // 4)), Lane.BODY: 1}


class TextPool:
    """The lanes of one front end. One event loop owns it; threads start when they are first needed."""

    def __init__(self) -> None:
        self._lanes = {
            lane: ThreadPoolExecutor(count, thread_name_prefix=f"quire-text-{lane.value}")
            for lane, count in _THREADS.items()
        }
        self._num_pending = 0

    async def run(self, lane: Lane, size: int, function: Callable[..., T], /, *args: object, **kwargs: object) -> T:
        """What the function returns, called in a thread of the lane; `size` is the characters it works on.

        A caller that is cancelled before the function's turn takes its turn back.

        Raises:
            OverloadedError: too much waits in the long lane. Otherwise what the function raises.
        """
        with self._counted(lane, size):
            call = functools.partial(function, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._lanes[lane], call)

    def close(self) -> None:
        """Take no more work; what has not begun is cancelled."""
        for executor in self._lanes.values():
            executor.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _counted(self, lane: Lane, size: int) -> Iterator[None]:
        if lane is not Lane.LONG:
            yield
            return
        if self._num_pending and self._num_pending + size > MAX_PENDING_CHARACTERS:
            raise OverloadedError(
                f"{self._num_pending} characters of long texts wait to be read; at most {MAX_PENDING_CHARACTERS} may",
                retry_after=RETRY_SECONDS,
            )
        self._num_pending += size
        try:
            yield
        finally:
            self._num_pending -= size


def lane_for(size: int) -> Lane:
    """The lane for a text of so many characters."""
    return Lane.SHORT if size <= LONG_CHARACTERS else Lane.LONG


def check_length(num_characters: int, *, param: str | None = None) -> None:
    """Refuse a text that no model reads, before it is tokenized; raises InvalidRequestError."""
    if num_characters > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"the text has {num_characters} characters; at most {MAX_CHARACTERS} are read",
            param=param,
            code="string_above_max_length",
        )


def grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in order, in groups that are each short unless a single text is long."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > LONG_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group
