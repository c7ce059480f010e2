"""Times of operations beside ceilings of the same run; the numbers themselves belong to the machine."""

from __future__ import annotations

import dataclasses
import json

import pytest

from quire.attention.interface import AttentionSpec
from quire.base.cpu_kernels import are_usable, instruction_sets
from quire.base.errors import ConfigError
from quire.bench import op_cases, ops
from quire.bench.op_cases import KINDS, Selection, Work, groups_of
from quire.bench.op_shapes import SMOLLM2_135M, MatrixShape, shapes_of
from quire.bench.ops import Ceilings, OpsLoad, describe, run_ops
from quire.bench.report import as_json
from quire.ops.cpu import ceilings
from quire.ops.cpu.ceilings import UNITS, peak_rate, read_rate
from quire.ops.cpu.weights import FORMATS
from quire.quant.interface import ExpertsSpec

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")

SMALL = dataclasses.replace(
    SMOLLM2_135M,
    name="small",
    hidden_size=64,
    vocab_rows=96,
    matrices=(MatrixShape("up", 96, 64), MatrixShape("down", 64, 96)),
    attention=AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25),
    rotary_dim=16,
    mlp_width=96,
    experts=ExpertsSpec(num_experts=4, hidden_size=64, width=32, activation="silu"),
)
CEILINGS = Ceilings(
    threads=2, memory_rate=10.0, cache_rate=100.0, peaks={"float32 fma": 20.0, "int16 madd": 30.0, "int8 dot": 50.0}
)


@pytest.fixture(scope="module", autouse=True)
def small_caches():
    """Working sets of some kilobytes: a test waits for no memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op_cases, "last_cache_bytes", lambda: 1 << 14)
        patch.setattr(ops, "_PASS_SECONDS", 1e-4)
        yield


@pytest.fixture(scope="module")
def small_result():
    """One run of everything on a small layer."""
    return run_ops(SMALL, OpsLoad(rows=(1, 3), contexts=(40,), threads=2, rounds=2))


def test_every_operation_of_a_layer_is_timed_on_one_thread_and_on_all(small_result):
    names = {one.op for one in small_result.ops}
    assert names == {
        *("packed_linear", "packed_experts", "attention"),
        *("rms_norm", "add_rms_norm", "rope", "gated_activation", "greedy"),
    }
    by_threads = [[(one.op, one.shape, one.rows) for one in small_result.ops if one.threads == n] for n in (1, 2)]
    assert by_threads[0] == by_threads[1]
    formats = {one.precision for one in small_result.ops if one.op == "packed_linear" and one.shape.startswith("up")}
    assert formats == set(FORMATS)
    assert not small_result.skipped


def test_times_come_with_their_spread_and_the_share_of_the_ceiling(small_result):
    by_threads = {one.threads: one for one in small_result.ceilings}
    for one in small_result.ops:
        assert 0 < one.seconds <= one.median_seconds <= one.slowest_seconds
        assert one.passes == 2
        floors = by_threads[one.threads].floors(one.work)
        assert one.floor_seconds == max(floors.values()) == floors[one.bound]
        assert one.share == pytest.approx(one.floor_seconds / one.seconds)
    printed = json.loads(as_json(small_result))
    assert printed["ops"][0]["share"] == pytest.approx(small_result.ops[0].share)
    assert "packed_linear up 96x64" in describe(small_result)


def test_the_least_time_is_the_longest_of_memory_cache_and_arithmetic():
    work = Work(operations=100.0, memory_bytes=20.0, cache_bytes=50.0)
    assert CEILINGS.floors(work) == {"memory": 2.0, "cache": 0.5, "arithmetic": 5.0}
    assert CEILINGS.floors(dataclasses.replace(work, precision="int8"))["arithmetic"] == 2.0
    plain = dataclasses.replace(CEILINGS, peaks={"float32 fma": 20.0})
    assert plain.floors(dataclasses.replace(work, precision="int8"))["arithmetic"] == 5.0


def test_the_better_of_two_measured_ceilings_counts():
    other = dataclasses.replace(CEILINGS, memory_rate=12.0, cache_rate=90.0, peaks={**CEILINGS.peaks, "int8 dot": 60.0})
    best = CEILINGS.best_of(other)
    assert (best.memory_rate, best.cache_rate, best.rate_of("int4"), best.rate_of("bfloat16")) == (
        12.0,
        100.0,
        60.0,
        20.0,
    )


def test_weights_and_pages_come_in_more_copies_than_a_cache_holds():
    selection = Selection(kinds=("linear", "attention"), formats=("int8",), rows=(1,), contexts=(40,))
    for _, group in groups_of(SMALL, selection):
        for case in group():
            assert len(case.calls) * case.work.memory_bytes >= 6 * op_cases.last_cache_bytes()


def test_experts_take_turns_so_that_no_cache_holds_the_chosen_ones():
    [(_, group)] = groups_of(SMALL, Selection(kinds=("experts",), formats=("int8",), rows=(1,), contexts=()))
    [case] = group()
    chosen = {tuple(call.args[4].flatten().tolist()) for call in case.calls}
    assert len(chosen) == SMALL.experts.num_experts


def test_attention_counts_the_keys_that_a_window_lets_it_see():
    windowed = dataclasses.replace(SMALL, attention=dataclasses.replace(SMALL.attention, window=8))
    selection = Selection(kinds=("attention",), formats=(), rows=(), contexts=(40,))
    works = []
    for shapes in (SMALL, windowed):
        _, group = groups_of(shapes, selection)[0]
        works.append(next(iter(group())).work)
    assert works[0].operations == 4 * 4 * 16 * 40
    assert works[1].operations == 4 * 4 * 16 * 8
    assert works[0].memory_bytes == 5 * works[1].memory_bytes == 40 * 2 * 2 * 16 * 4


def test_once_the_time_is_over_groups_are_left_out_and_named():
    load = OpsLoad(kinds=("linear",), formats=("int8", "int4"), rows=(1,), threads=1, rounds=1, max_seconds=1e-9)
    result = run_ops(SMALL, load)
    assert result.skipped == [f"{name} {kind}" for name in ("up 96x64", "down 64x96") for kind in ("int8", "int4")] + [
        "head 96x64 int8"
    ]
    assert "left out after 1e-09 seconds: up 96x64 int8" in describe(result)


def test_a_checkpoints_sizes_are_those_of_the_model_built_for_it(demo_path):
    shapes = shapes_of(demo_path)
    assert shapes.matrices == (
        MatrixShape("qkv_proj", 320, 192),
        MatrixShape("o_proj", 192, 192),
        MatrixShape("gate_up_proj", 1024, 192),
        MatrixShape("down_proj", 192, 512),
    )
    assert (shapes.hidden_size, shapes.vocab_rows, shapes.mlp_width, shapes.rotary_dim) == (192, 1024, 512, 32)
    assert (shapes.attention.num_heads, shapes.attention.num_kv_heads, shapes.experts) == (6, 2, None)
    groups = groups_of(shapes, Selection(kinds=KINDS, formats=("int4",), rows=(1,), contexts=()))
    assert [name for name, _ in groups] == [*(f"{matrix} int4" for matrix in shapes.matrices), "row by row"]


@pytest.mark.parametrize(
    "bad", [{"rows": (0,)}, {"threads": 0}, {"rounds": 0}, {"max_seconds": 0.0}, {"contexts": (0,)}]
)
def test_a_load_that_measures_nothing_is_refused(bad):
    with pytest.raises(ConfigError, match="above 0"):
        OpsLoad(**bad)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("threads", [1, 2])
def test_ceilings_are_measured_for_every_instruction_set(instruction_set, threads):
    options = {"instruction_set": instruction_set, "threads": threads, "rounds": 1}
    assert read_rate(1 << 20, **options) > 0
    peaks = {unit: peak_rate(unit, **options) for unit in UNITS}
    assert peaks["float32 fma"] is not None
    wide = instruction_set != "portable"
    assert all((peaks[unit] is not None) == wide for unit in ("int16 madd", "int8 madd"))


def test_a_rate_is_what_was_done_over_the_seconds_of_the_fastest_round(monkeypatch):
    """Turns are doubled until they take long enough to be timed."""

    class Library:
        taken = iter([0.001, 0.002, 0.5, 0.25, 0.75])

        def quire_ceiling_operations(self, level, unit):
            return 3

        def quire_ceiling_compute(self, level, unit, threads, turns):
            self.turns = turns
            return next(self.taken)

    library = Library()
    monkeypatch.setattr(ceilings, "load_library", lambda: library)
    rate = peak_rate("float32 fma", instruction_set="any", threads=2, rounds=3)
    assert library.turns == 4 << 14
    assert rate == 3 * library.turns * 2 / 0.25
    library.taken = iter([-1.0])
    with pytest.raises(MemoryError, match="threads"):
        peak_rate("float32 fma", instruction_set="any", threads=2, rounds=3)


def test_an_instruction_set_is_known_by_the_beginning_of_its_name():
    """A finer level of the kernels has the ceilings of the level that it refines, and its own."""
    for name in instruction_sets():
        assert peak_rate("float32 fma", instruction_set=f"{name}x", threads=1, rounds=1) is not None
        for unit, levels in {"int8 dot": ("avx512vnni", "avx512bf16"), "bfloat16 dot": ("avx512bf16",)}.items():
            assert (peak_rate(unit, instruction_set=name, threads=1, rounds=1) is not None) == (name in levels)
    assert peak_rate("float32 fma", instruction_set="unknown", threads=1, rounds=1) is None


@pytest.mark.parametrize(("cache", "expected"), [(32 << 20, 256 << 20), (384 << 20, 1 << 30), (768 << 20, 1536 << 20)])
def test_the_working_set_is_larger_than_the_cache_and_bounded_where_that_is_huge(monkeypatch, cache, expected):
    monkeypatch.setattr(op_cases, "last_cache_bytes", lambda: cache)
    assert op_cases.working_set_bytes() == expected
