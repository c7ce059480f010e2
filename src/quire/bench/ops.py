"""What each operation reaches of what this machine can do: times beside ceilings measured in the same run.

Operations run as they do in a step: recorded, many to a call, on the engine's threads. The least time one could take is
the longest of three: its weights or pages at the memory's rate, its activations at the second cache's, its products at
the fastest arithmetic that its precision allows. The share is that time over the one measured.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from quire.base.cpu_kernels import are_usable, chosen_instruction_set
from quire.base.errors import ConfigError
from quire.bench.op_cases import KINDS, Case, Group, Selection, Work, groups_of, working_set_bytes
from quire.bench.op_shapes import OpShapes
from quire.bench.report import table
from quire.ops.cpu.ceilings import UNITS, peak_rate, read_rate
from quire.ops.cpu.library import PlanRecord
from quire.ops.cpu.program import Pool, Recording, using
from quire.ops.cpu.weights import FORMATS

_PASS_SECONDS = 0.005
"""What one pass should take at the ceiling."""
_MOST_CALLS = 1024
"""Of operations that take less than a microsecond, to bound the list."""
_CACHE_BYTES = 256 << 10
"""Per thread: past the first cache, within the second."""
_CEILING_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsLoad:
    """What to measure and for how long."""

    kinds: tuple[str, ...] = KINDS
    formats: tuple[str, ...] = tuple(FORMATS)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 512)
    contexts: tuple[int, ...] = (512, 4096)
    threads: int = 1
    rounds: int = 5
    max_seconds: float = 180.0

    def __post_init__(self) -> None:
        """Refuse loads that measure nothing."""
        if min((*self.rows, *self.contexts, self.threads, self.rounds)) < 1 or self.max_seconds <= 0:
            raise ConfigError("rows, contexts, threads, rounds and the time limit must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that so many threads reach together."""

    threads: int
    memory_rate: float
    """Bytes per second read from as much memory as the copies of weights and pages are."""
    cache_rate: float
    """Bytes per second read from the second cache."""
    peaks: dict[str, float]
    """Operations per second by kind of arithmetic, two per product."""

    def rate_of(self, weight_format: str) -> float:
        """Operations per second of the fastest arithmetic that weights in this format allow."""
        starts = {"bfloat16_dot": ("bfloat16", "float32"), "int8": ("int", "float32"), "int4": ("int", "float32")}
        return max(rate for unit, rate in self.peaks.items() if unit.startswith(starts.get(weight_format, "float32")))

    def floors(self, work: Work) -> dict[str, float]:
        """The least seconds that each part of the work takes."""
        return {
            "memory": work.memory_bytes / self.memory_rate,
            "cache": work.cache_bytes / self.cache_rate,
            "arithmetic": work.operations / (self.rate_of(work.precision)),
        }

    def best_of(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of each: other work on the machine only ever takes away."""
        return Ceilings(
            threads=self.threads,
            memory_rate=max(self.memory_rate, other.memory_rate),
            cache_rate=max(self.cache_rate, other.cache_rate),
            peaks={unit: max(rate, other.peaks[unit]) for unit, rate in self.peaks.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpResult:
    """One operation at one size on so many threads; seconds are of one operation, of passes over many."""

    op: str
    shape: str
    precision: str
    rows: int
    context: int
    threads: int
    passes: int
    calls: int
    """Operations per pass."""
    seconds: float
    """In the fastest pass."""
    median_seconds: float
    slowest_seconds: float
    work: Work
    bound: str
    """What its least time is due to: memory, cache, arithmetic."""
    floor_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Of weights and pages, and of activations where there are neither."""
        return (self.work.memory_bytes or self.work.cache_bytes) / self.seconds

    @property
    def operations_per_second(self) -> float:
        """Two per product."""
        return self.work.operations / self.seconds

    @property
    def share(self) -> float:
        """The least possible time over the measured one."""
        return self.floor_seconds / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsResult:
    """Everything one run measured."""

    shapes: OpShapes
    instruction_set: str
    load: OpsLoad
    ceilings: list[Ceilings]
    """By number of threads: measured before and after every group of operations; the best counts."""
    ops: list[OpResult]
    skipped: list[str]
    """Groups that the time limit left out."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """A case with the seconds of its passes."""

    case: Case
    threads: int
    calls: int
    seconds: list[float]

    def result(self, ceilings: Ceilings) -> OpResult:
        case, floors = self.case, ceilings.floors(self.case.work)
        bound = max(floors, key=lambda name: floors[name])
        each = [seconds / self.calls for seconds in self.seconds]
        return OpResult(
            op=case.op,
            shape=case.shape,
            precision=case.precision,
            rows=case.rows,
            context=case.context,
            threads=self.threads,
            passes=len(each),
            calls=self.calls,
            seconds=min(each),
            median_seconds=statistics.median(each),
            slowest_seconds=max(each),
            work=case.work,
            bound=bound,
            floor_seconds=floors[bound],
        )


def run_ops(shapes: OpShapes, load: OpsLoad) -> OpsResult:
    """Measure every operation of the load on one thread and on all, and the ceilings before and after each group.

    Raises:
        ConfigError: the kernels were not built, or the environment asks for the reference instead.
    """
    if not are_usable():
        raise ConfigError(
            "the operations measured are those of the CPU kernels, which are not in use; build them "
            "(python hatch_build.py, with a C++ compiler) and unset QUIRE_CPU_ISA if it says reference"
        )
    deadline = time.perf_counter() + load.max_seconds
    instruction_set = chosen_instruction_set()
    pools = [Pool(threads, instruction_set) for threads in sorted({1, load.threads})]
    ceilings = {pool.threads: measure_ceilings(pool) for pool in pools}
    selection = Selection(kinds=load.kinds, formats=load.formats, rows=load.rows, contexts=load.contexts)
    groups, timed, skipped = groups_of(shapes, selection), list[_Timed](), list[str]()
    for index, (name, group) in enumerate(groups):
        left = deadline - time.perf_counter()
        if left <= 0:
            skipped.append(name)
            continue
        timed += _run_group(group, pools, ceilings, rounds=load.rounds, max_seconds=left / (len(groups) - index))
        for pool in pools:
            ceilings[pool.threads] = ceilings[pool.threads].best_of(measure_ceilings(pool, rounds=1))
    return OpsResult(
        shapes=shapes,
        instruction_set=instruction_set,
        load=load,
        ceilings=list(ceilings.values()),
        ops=[one.result(ceilings[one.threads]) for one in timed],
        skipped=skipped,
    )


def measure_ceilings(pool: Pool, *, rounds: int = _CEILING_ROUNDS) -> Ceilings:
    """What as many threads as the pool has reach, on its instruction set."""
    threads, level = pool.threads, pool.instruction_set
    peaks = {unit: peak_rate(unit, instruction_set=level, threads=threads, rounds=rounds) for unit in UNITS}
    sizes = (working_set_bytes(), _CACHE_BYTES * threads)
    memory, cache = (read_rate(size, instruction_set=level, threads=threads, rounds=rounds) for size in sizes)
    return Ceilings(
        threads=threads,
        memory_rate=memory,
        cache_rate=cache,
        peaks={unit: rate for unit, rate in peaks.items() if rate is not None},
    )


def _run_group(
    group: Group, pools: Sequence[Pool], ceilings: dict[int, Ceilings], *, rounds: int, max_seconds: float
) -> list[_Timed]:
    """Every case of a group on every pool; once the time is over, cases get a single pass."""
    began, timed = time.perf_counter(), list[_Timed]()
    for case in group():
        for pool in pools:
            calls = _num_calls(case, ceilings[pool.threads].floors(case.work))
            seconds = _time(case, pool, calls=calls, rounds=rounds, deadline=began + max_seconds)
            timed.append(_Timed(case, pool.threads, calls, seconds))
    return timed


def _num_calls(case: Case, floors: dict[str, float]) -> int:
    """As many as fill a pass, and all of them at least where memory is what they wait for."""
    enough = min(_MOST_CALLS, math.ceil(_PASS_SECONDS / max(floors.values())))
    return max(enough, len(case.calls)) if floors["memory"] == max(floors.values()) else enough


def _time(case: Case, pool: Pool, *, calls: int, rounds: int, deadline: float) -> list[float]:
    """Seconds of each pass over `calls` operations, after one pass that is not counted."""
    recording, plan = Recording(case.tokens), case.plan or PlanRecord()
    with using(pool):
        pool.start(recording)
        try:
            for call in itertools.islice(itertools.cycle(case.calls), calls):
                call()
        finally:
            pool.stop()
    recording.finish()
    recording.replay(pool, case.tokens, plan)
    taken: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        recording.replay(pool, case.tokens, plan)
        taken.append(time.perf_counter() - began)
        if time.perf_counter() > deadline:
            break
    return taken


def describe(result: OpsResult) -> str:
    """Ceilings and operations as tables, one line per operation and size."""
    load, skipped = result.load, ", ".join(result.skipped)
    parts = [
        f"{result.shapes.name}, {result.instruction_set} kernels; the fastest of up to {load.rounds} passes",
        _ceiling_table(result.ceilings),
        _op_table(result),
        "us: of one operation. median, slowest: of the passes, relative to the fastest. GB/s: weights or pages, else\n"
        "activations. bound: what the least possible time is due to. share: that time over the measured one.",
    ]
    if skipped:
        parts.append(f"left out after {load.max_seconds:g} seconds: {skipped}; raise --max-seconds or ask for less")
    return "\n\n".join(parts)


def _ceiling_table(ceilings: Sequence[Ceilings]) -> str:
    header = ["ceiling", *(f"{one.threads} thread{'s' * (one.threads > 1)}" for one in ceilings)]
    rows: list[list[object]] = [
        ["memory, GB/s", *(one.memory_rate / 1e9 for one in ceilings)],
        ["second cache, GB/s", *(one.cache_rate / 1e9 for one in ceilings)],
    ]
    rows += [[f"{unit}, Gop/s", *(one.peaks[unit] / 1e9 for one in ceilings)] for unit in ceilings[0].peaks]
    return table(header, rows)


def _op_table(result: OpsResult) -> str:
    """A line per case on all threads; one thread is in the last columns."""
    header = ["operation", "precision", "rows", "context", "us", "median", "slowest", "GB/s", "Gop/s", "bound", "share"]
    most = max(one.threads for one in result.ceilings)
    if most > 1:
        header += ["1 thread us", "share"]
    alone = iter([one for one in result.ops if one.threads == 1])
    rows = []
    for one in (one for one in result.ops if one.threads == most):
        rows.append(_line(one))
        if most > 1:
            beside = next(alone)
            rows[-1] += [beside.seconds * 1e6, f"{beside.share:.0%}"]
    return table(header, rows)


def _line(one: OpResult) -> list[object]:
    return [
        f"{one.op} {one.shape}",
        one.precision or "-",
        one.rows,
        one.context or "-",
        one.seconds * 1e6,
        f"{one.median_seconds / one.seconds:.2f}",
        f"{one.slowest_seconds / one.seconds:.2f}",
        one.bytes_per_second / 1e9,
        one.operations_per_second / 1e9 if one.work.operations else "-",
        one.bound,
        f"{one.share:.0%}",
    ]
