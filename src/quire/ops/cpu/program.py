"""Runs lists of op records on a pool of threads, and records them for replay.

A recording holds the records of a forward pass with the addresses of all its tensors; the number of tokens is an
argument of each replay, up to the capacity it was recorded with. Memory of intermediate results is reused in the order
the recorded pass let go of it.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache

import numpy as np
import torch
from torch import Tensor

from quire.ops.cpu.library import OpRecord, PackRecord, PlanRecord, chosen_instruction_set, load_library

_ALIGNMENT = 64


class NotReplayableError(Exception):
    """The pass being recorded does something that a replay with another number of tokens could not do."""


class Pool:
    """The kernels' threads. Callers from several threads take turns; a recording is of the thread that started it."""

    def __init__(self, threads: int, instruction_set: str) -> None:
        library = load_library()
        assert library is not None, "a pool needs the compiled kernels"
        self._library = library
        self.instruction_set = instruction_set
        self.threads = threads
        self.seconds = 0.0
        """How long calls of `run` took so far, all callers together."""
        self._local = threading.local()
        self._engine = library.quire_engine_new(threads, instruction_set.encode())
        if not self._engine:
            raise MemoryError(f"cannot start {threads} threads for the {instruction_set} kernels")
        # Not at exit, when other threads may still compute: the system takes threads and memory back.
        weakref.finalize(self, _free, self._engine, os.getpid()).atexit = False

    @property
    def recording(self) -> Recording | None:
        """What this thread is recording into."""
        found: Recording | None = getattr(self._local, "recording", None)
        return found

    def start(self, recording: Recording) -> None:
        """From now on, ops of this thread are noted and not run."""
        self._local.recording = recording

    def stop(self) -> None:
        """Run ops again."""
        self._local.recording = None

    def submit(self, record: OpRecord, rows: int, plan: PlanRecord | None = None) -> None:
        """Run one op on so many rows, or note it where a recording is going on."""
        recording = self.recording
        if recording is not None:
            recording.append(record, rows)
            return
        record.rows = rows
        self.run(ctypes.byref(record), 1, 1, plan)

    def submit_per_token(self, record: OpRecord, tokens: int, plan: PlanRecord) -> None:
        """As `submit`, for the op that needs the plan of the step: it counts tokens, not rows."""
        recording = self.recording
        if recording is not None:
            recording.append(record, tokens)
            return
        record.rows = 1
        self.run(ctypes.byref(record), 1, tokens, plan)

    def run(self, records: object, count: int, tokens: int, plan: PlanRecord | None) -> None:
        """Run `count` records for a step of `tokens` tokens; raises MemoryError."""
        began = time.perf_counter()
        status = self._library.quire_run(
            self._engine, records, count, tokens, None if plan is None else ctypes.byref(plan)
        )
        self.seconds += time.perf_counter() - began
        if status:
            raise MemoryError("no memory for the kernels' scratch")

    def pack(self, job: PackRecord) -> None:
        """Pack rows of a weight matrix."""
        self._library.quire_pack(self._engine, ctypes.byref(job))


def _free(engine: int, process: int) -> None:
    """End a pool, unless this is a fork of its process: the threads to wait for are not here."""
    library = load_library()
    if library is not None and process == os.getpid():
        library.quire_engine_free(engine)


_in_use: ContextVar[Pool | None] = ContextVar("pool_in_use", default=None)


class using:  # noqa: N801 - reads as a statement, and a generator would cost every step 10 us more
    """Within the block, run this thread's ops on `pool`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __enter__(self) -> Pool:
        self._token = _in_use.set(self._pool)
        return self._pool

    def __exit__(self, *error: object) -> None:
        _in_use.reset(self._token)


@cache
def _pool(threads: int, instruction_set: str, process: int) -> Pool:
    del process  # threads do not survive a fork, so each process has its own
    return Pool(threads, instruction_set)


def current_pool() -> Pool:
    """The pool of `using`, else the one with as many threads as torch uses."""
    return _in_use.get() or _pool(torch.get_num_threads(), chosen_instruction_set(), os.getpid())


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An unfilled tensor, from the recording's memory while one is going on."""
    recording = current_pool().recording
    return torch.empty(tuple(shape), dtype=dtype) if recording is None else recording.empty(shape, dtype)


class Recording:
    """The op records of a forward pass over `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._records: list[OpRecord] = []
        self._blocks: list[np.ndarray] = []
        self._free: list[np.ndarray] = []
        self._array: ctypes.Array[OpRecord] | None = None

    def append(self, record: OpRecord, rows: int) -> None:
        """Note an op.

        Raises:
            NotReplayableError: its rows are not a multiple of the tokens.
        """
        per_token, rest = divmod(rows, self.capacity)
        if rest or not per_token:
            raise NotReplayableError(f"an op on {rows} rows cannot be replayed for another number of tokens")
        record.rows = per_token
        self._records.append(record)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor in memory that is free again once the last tensor over it is gone."""
        count = math.prod(shape)
        size = max(1, count * dtype.itemsize)
        block = self._take(size)
        owner = block[:size].view()
        weakref.finalize(owner, self._free.append, block)
        return torch.from_numpy(owner)[: count * dtype.itemsize].view(dtype).view(tuple(shape))

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in this recording's memory."""
        address = tensor.data_ptr()
        return any(0 <= address - block.ctypes.data < block.size for block in self._blocks)

    def finish(self) -> None:
        """Fix the list."""
        self._array = (OpRecord * len(self._records))(*self._records)

    def replay(self, pool: Pool, tokens: int, plan: PlanRecord) -> None:
        """Run all records for so many tokens."""
        pool.run(self._array, len(self._records), tokens, plan)

    def _take(self, size: int) -> np.ndarray:
        fitting = [i for i, block in enumerate(self._free) if block.size >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda i: self._free[i].size))
        raw = np.empty(size + _ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        block = raw[start : start + size]
        self._blocks.append(block)
        return block
