"""Attention both ways: every query sees all keys of its row, and nothing of other rows or of unused places."""

import dataclasses
import math

import pytest
import torch

from quire.attention import select_backend
from quire.attention.reference import QUERY_BLOCK

ROWS = [(23, 23), (1, 1), (64, 64), (QUERY_BLOCK + 9, QUERY_BLOCK + 9)]


@pytest.fixture
def case(make_case):
    made = make_case(heads="grouped", rows=ROWS)
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, bidirectional=True))


def test_every_query_sees_every_key_of_its_row(case):
    spec = case.spec
    for row, ours in enumerate(case.run(select_backend("reference"), filler=math.nan)):
        q, k, v = (tensors[row].double() for tensors in (case.queries, case.keys, case.values))
        k, v = (t.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1) for t in (k, v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) * spec.scale).softmax(-1)
        assert (ours.double() - torch.einsum("hqk,khd->qhd", weights, v)).abs().max() < 2e-6


def test_a_row_has_the_same_bits_alone_and_in_any_batch(case):
    backend = select_backend("reference")
    together = case.run(backend)
    for row in range(len(ROWS)):
        assert torch.equal(case.run(backend, chosen=[row])[0], together[row])


def test_the_compiled_kernels_refuse_instead_of_masking(case):
    pytest.importorskip("quire.ops.cpu.library")
    with pytest.raises(ValueError, match="look back only"):
        case.run(select_backend("kernels"))
