"""Attention both ways: every query sees all keys of its row, and nothing of other rows or of unused places."""

import dataclasses
import math

import pytest
import torch

from quire.attention.cpu import CpuAttention
from quire.attention.reference import QUERY_BLOCK, ReferenceAttention
from quire.base.cpu_kernels import instruction_sets
from quire.ops.cpu.program import using

ROWS = [(23, 23), (1, 1), (64, 64), (QUERY_BLOCK + 9, QUERY_BLOCK + 9)]
BORDERS = (1, 2, 47, 48, 49, 63, 64, 65, 96, 127, 255, 256, 257, 512, 515)
"""Lengths at the borders of tiles (48 queries), blocks (64 keys) and partitions (256 keys)."""


def both_ways(made):
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, bidirectional=True))


@pytest.fixture
def case(make_case):
    return both_ways(make_case(heads="grouped", rows=ROWS))


def expected(case):
    """In float64 over contiguous keys and values, per row."""
    spec = case.spec
    for q, k, v in zip(case.queries, case.keys, case.values, strict=True):
        q, k, v = (tensor.double() for tensor in (q, k, v))
        k, v = (t.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1) for t in (k, v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) * spec.scale).softmax(-1)
        yield torch.einsum("hqk,khd->qhd", weights, v)


def test_every_query_sees_every_key_of_its_row(backend, case):
    for ours, theirs in zip(case.run(backend, filler=math.nan), expected(case), strict=True):
        assert (ours.double() - theirs).abs().max() < 2e-6


@pytest.mark.parametrize("heads", ["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("page_size", [8, 16, 128])
def test_rows_of_ragged_lengths_are_as_computed_in_float64(backend, make_case, heads, page_size):
    """S14: NaN in every place of the pages that is not the step's."""
    case = both_ways(make_case(heads=heads, rows=[(length, length) for length in BORDERS], page_size=page_size))
    for length, ours, theirs in zip(BORDERS, case.run(backend, filler=math.nan), expected(case), strict=True):
        assert (ours.double() - theirs).abs().max() < 2e-6, length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("isa", instruction_sets())
def test_narrow_pages_are_read_both_ways_too(make_case, pool_of, isa, dtype):
    case = both_ways(make_case(heads="multi-query", rows=ROWS))
    reference = case.run(ReferenceAttention(), page_dtype=dtype, filler=0)
    with using(pool_of(isa, 2)):
        ours = case.run(CpuAttention(), page_dtype=dtype, filler=-1 if dtype == torch.int8 else math.nan)
    for one, other in zip(ours, reference, strict=True):
        # Products of pairs of bfloat16 round queries and weights as well.
        assert (one - other).abs().max() < (2e-2 if dtype == torch.bfloat16 else 4e-6)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(backend, case):
    """REL-15"""
    together = case.run(backend)
    for row in range(len(ROWS)):
        assert torch.equal(case.run(backend, chosen=[row], order=row)[0], together[row])


@pytest.mark.parametrize("isa", instruction_sets())
def test_the_number_of_threads_changes_no_bit(case, pool_of, isa):
    """One long row is cut into partitions only where several threads share it."""
    results = []
    for threads in (1, 2):
        with using(pool_of(isa, threads)):
            results.append(case.run(CpuAttention(), chosen=[3])[0])
    assert torch.equal(*results)


def test_what_one_row_holds_leaves_no_trace_in_others(backend, case):
    clean = case.run(backend)
    case.keys[2][5] = math.nan
    case.values[2][7] = math.inf
    spoilt = case.run(backend)
    assert not spoilt[2].isfinite().any()
    for row in (0, 1, 3):
        assert torch.equal(spoilt[row], clean[row])
