"""Routing and experts on the CPU kernels against the reference, and the rules that hold to the bit."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from quire import ops
from quire.ops import reference
from quire.ops.cpu.program import using
from quire.ops.cpu.weights import FORMATS, PackedMatrix

pytestmark = pytest.mark.usefixtures("pool")

EXPERTS, CHOSEN = 7, 3
TOLERANCE = {"float32": 3e-6, "bfloat16": 3e-6, "bfloat16_dot": 2e-2, "int8": 3e-2, "int4": 3e-2}
"""Relative to the largest number expected from the weights as they were packed; the narrow formats round x as well."""
SIZES = [(48, 40), (50, 23), (16, 64), (1, 1)]
"""Model width and an expert's; most are no whole number of panels or groups."""


def packed(weights, weight_format):
    """A stack of matrices [X, rows, columns], packed."""
    matrix = PackedMatrix(weights.shape[1], weights.shape[2], weight_format, count=weights.shape[0])
    for index, part in enumerate(weights):
        matrix.fill(part, 0, index=index)
    return matrix


def as_packed(weights, weight_format):
    """What the packed forms of these matrices mean, as float32: their products with the unit vectors."""
    rows = []
    for part in weights:
        matrix = PackedMatrix(part.shape[0], part.shape[1], weight_format)
        matrix.fill(part, 0)
        rows.append(ops.packed_embedding(torch.arange(part.shape[0]), matrix))
    return torch.stack(rows)


def make_case(tokens, hidden=48, width=40, *, experts=EXPERTS, chosen=CHOSEN):
    """x, gate_up, down, weights, ids."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up = torch.randn(experts, 2 * width, hidden, generator=generator) * hidden**-0.5
    down = torch.randn(experts, hidden, width, generator=generator) * width**-0.5
    logits = torch.randn(tokens, experts, generator=generator)
    return x, gate_up, down, *reference.route(logits, chosen, renormalize=True)


def run(case, weight_format, kind="silu"):
    """`ops.packed_experts` on the packed form of a case."""
    x, gate_up, down, weights, ids = case
    return ops.packed_experts(x, packed(gate_up, weight_format), packed(down, weight_format), weights, ids, kind=kind)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_experts_are_those_of_the_reference(memory, close, weight_format, sizes):
    x, *stacks, weights, ids = make_case(70, *sizes)
    matrices = [packed(stack, weight_format) for stack in stacks]
    real = [as_packed(stack, weight_format) for stack in stacks]
    for tokens in (0, 1, 2, 5, 6, 7, 16, 33, 70):
        part = slice(70 - tokens, 70)
        inputs, *choice = (memory.filled(tensor[part]) for tensor in (x, weights, ids))
        expected = reference.experts(x[part], *real, weights[part], ids[part], kind="silu")
        close(ops.packed_experts(inputs, *matrices, *choice, kind="silu"), expected, TOLERANCE[weight_format])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_experts_are_to_the_bit_what_the_ops_they_consist_of_make(weight_format):
    for tokens in (1, 6, 33):
        x, gate_up, down, weights, ids = case = make_case(tokens, 50, 40)
        expected = torch.zeros_like(x)
        for expert in range(EXPERTS):
            rows, place = torch.where(ids == expert)
            up, back = (packed(stack[expert : expert + 1], weight_format) for stack in (gate_up, down))
            inner = ops.gated_activation(ops.packed_linear(x[rows], up), "silu")
            expected[rows] += ops.packed_linear(inner, back) * weights[rows, place, None]
        assert torch.equal(run(case, weight_format), expected)


@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
def test_every_activation_gates(kind):
    x, gate_up, down, weights, ids = case = make_case(9)
    expected = reference.experts(x, gate_up, down, weights, ids, kind=kind)
    assert torch.allclose(run(case, "float32", kind), expected, atol=1e-5)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_keeps_its_bits_whatever_its_batch(weight_format):
    """REL-15: alone, in a part of the batch, or with everyone."""
    x, gate_up, down, weights, ids = make_case(70)
    matrices = packed(gate_up, weight_format), packed(down, weight_format)
    together = ops.packed_experts(x, *matrices, weights, ids, kind="silu")
    for part in (slice(0, 1), slice(69, 70), slice(3, 9), slice(20, 53)):
        alone = ops.packed_experts(x[part], *matrices, weights[part], ids[part], kind="silu")
        assert torch.equal(alone, together[part])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_an_expert_with_more_rows_than_a_threads_scratch_keeps_bits_too(close, weight_format):
    """Its products are computed by all threads together: 300 rows of 2048 numbers are 2.4 MB of tiles."""
    x, gate_up, down, weights, ids = make_case(300, 2048, 16, experts=3, chosen=1)
    ids[:290] = 1
    matrices = packed(gate_up, weight_format), packed(down, weight_format)
    together = ops.packed_experts(x, *matrices, weights, ids, kind="silu")
    for part in (slice(0, 1), slice(280, 300)):
        alone = ops.packed_experts(x[part], *matrices, weights[part], ids[part], kind="silu")
        assert torch.equal(alone, together[part])
    real = [as_packed(stack, weight_format) for stack in (gate_up, down)]
    expected = reference.experts(x, *real, weights, ids, kind="silu")
    close(together, expected, TOLERANCE[weight_format])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_sum_runs_in_the_order_of_expert_ids(weight_format):
    """However a row lists them: its experts' outputs, each computed alone, added up by rising id."""
    x, gate_up, down, weights, ids = make_case(20)
    matrices = packed(gate_up, weight_format), packed(down, weight_format)
    together = ops.packed_experts(x, *matrices, weights, ids, kind="silu")
    by_id = ids.argsort(-1)
    expected = torch.zeros_like(x)
    for place in by_id.unbind(-1):
        one = ids.gather(1, place[:, None]), weights.gather(1, place[:, None])
        expected += ops.packed_experts(x, *matrices, one[1], one[0], kind="silu")
    assert torch.equal(together, expected)
    turned = ops.packed_experts(x, *matrices, weights.flip(-1), ids.flip(-1), kind="silu")
    assert torch.equal(turned, together)


def test_threads_do_not_change_a_bit(isa, pool_of):
    for weight_format, tokens in product(FORMATS, (1, 33)):
        case = make_case(tokens)
        here = run(case, weight_format)
        with using(pool_of(isa, 3)):
            assert torch.equal(run(case, weight_format), here)


@pytest.mark.parametrize("experts", [1, 4, 60, 128])
@pytest.mark.parametrize("renormalize", [False, True])
def test_routing_is_that_of_the_reference(memory, close, experts, renormalize):
    chosen = min(8, experts)
    for tokens in (0, 1, 7, 70):
        logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(tokens)) * 3
        weights, ids = ops.route(memory.filled(logits), chosen, renormalize=renormalize)
        expected, order = reference.route(logits, chosen, renormalize=renormalize)
        assert torch.equal(ids, order)
        close(weights, expected, 1e-6)


@pytest.mark.parametrize("route", [ops.route, reference.route])
def test_the_lower_of_equally_likely_experts_is_chosen(route):
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 2.0] * 20).repeat(2, 1)
    _, ids = route(logits, 4, renormalize=True)
    assert ids.tolist() == [[1, 3, 5, 7]] * 2


def test_a_logit_that_is_no_number_spoils_its_row_alone():
    logits = torch.randn(3, 9)
    logits[1, 4] = float("nan")
    weights, ids = ops.route(logits, 3, renormalize=True)
    assert weights[1].isnan().all() and not weights[[0, 2]].isnan().any()
    assert ((ids >= 0) & (ids < 9)).all()
