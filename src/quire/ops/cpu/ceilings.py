"""How fast this machine multiplies and reads at most, by loops that do nothing else (csrc/ceilings.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from quire.ops.cpu.library import load_library

UNITS = ("float32 fma", "bfloat16 dot", "int16 madd", "int16 dot", "int8 madd", "int8 dot")
"""Kinds of arithmetic, in the order of csrc/ceilings.cpp: the multiplication, and how its products are added up."""
_SECONDS = 0.02
"""Length of one measurement: long beside the start of a thread."""


def peak_rate(unit: str, *, instruction_set: str, threads: int, rounds: int) -> float | None:
    """Operations per second out of registers, two per product, in the fastest round; None without such a unit."""
    library = _library()
    number, level = UNITS.index(unit), instruction_set.encode()
    operations = library.quire_ceiling_operations(level, number)
    if not operations:
        return None
    turns, seconds = _fastest(
        lambda turns: library.quire_ceiling_compute(level, number, threads, turns), start=1 << 14, rounds=rounds
    )
    return float(operations * turns * threads / seconds)


def read_rate(num_bytes: int, *, instruction_set: str, threads: int, rounds: int) -> float:
    """Bytes per second that threads read together of memory of this size, shared out evenly, in the fastest round."""
    library, memory, level = _library(), torch.ones(num_bytes, dtype=torch.uint8), instruction_set.encode()
    passes, seconds = _fastest(
        lambda passes: library.quire_ceiling_read(level, memory.data_ptr(), num_bytes, threads, passes),
        start=1,
        rounds=rounds,
    )
    return num_bytes * passes / seconds


def _library() -> ctypes.CDLL:
    library = load_library()
    assert library is not None, "ceilings are measured by the compiled kernels"
    return library


def _fastest(run: Callable[[int], float], *, start: int, rounds: int) -> tuple[int, float]:
    """How many repetitions take long enough to be timed, and the seconds of their fastest round."""
    count = start
    while (seconds := _checked(run(count))) < _SECONDS:
        count *= 2
    return count, min([seconds, *(_checked(run(count)) for _ in range(rounds - 1))])


def _checked(seconds: float) -> float:
    if seconds < 0:
        raise MemoryError("cannot start the threads that measure")
    return seconds
