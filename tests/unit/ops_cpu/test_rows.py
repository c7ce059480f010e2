"""Ops on rows: every instruction set and thread count computes what the reference does, and touches nothing else."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from quire.ops import ACTIVATIONS, reference, reference_sampling
from quire.ops.cpu import table
from quire.ops.cpu.program import using

SHAPES = [(0, 8), (1, 1), (1, 200), (2, 15), (5, 17), (17, 33), (23, 48), (70, 129)]
HEADS = [(0, 2, 20), (1, 1, 20), (3, 4, 64), (5, 3, 80), (4, 2, 128), (1, 2, 256), (70, 2, 24)]
"""Tokens, heads, head size."""


@pytest.fixture(params=["together", "apart"])
def place(request, memory):
    """Put a tensor into guarded memory: rows one after the other, or apart."""
    return memory.filled if request.param == "together" else memory.fused


def test_rms_norm_is_the_references(pool, memory, place, random, close):
    for shape, plus_one in product(SHAPES, [False, True]):
        x, weight = random(*shape, scale=3.0), random(shape[1])
        ours = table.rms_norm(place(x), memory.filled(weight), eps=1e-5, plus_one=plus_one)
        close(ours, reference.rms_norm(x, weight, eps=1e-5, plus_one=plus_one))


def test_heads_within_a_fused_product_are_normalised(pool, memory, place, random, close):
    for shape in HEADS:
        x, weight, bias = random(*shape), random(shape[2]), random(shape[2])
        ours = table.rms_norm(place(x), memory.filled(weight), eps=1e-6)
        close(ours, reference.rms_norm(x, weight, eps=1e-6))
        ours = table.layer_norm(place(x), memory.filled(weight), memory.filled(bias), eps=1e-6)
        close(ours, reference.layer_norm(x, weight, bias, eps=1e-6), 1e-5)


def test_add_rms_norm_also_returns_the_sum(pool, memory, place, random, close):
    for shape in SHAPES:
        x, residual, weight = random(*shape), random(*shape), random(shape[1])
        normed, total = table.add_rms_norm(place(x), memory.filled(residual), memory.filled(weight), eps=1e-5)
        assert torch.equal(total, x + residual)
        close(normed, reference.rms_norm(total, weight, eps=1e-5))


def test_layer_norm_is_the_references_with_and_without_weights(pool, memory, place, random, close):
    for shape, affine in product(SHAPES, [False, True]):
        x, weight, bias = random(*shape) + 2.0, random(shape[1]), random(shape[1])
        ends = (memory.filled(weight), memory.filled(bias)) if affine else (None, None)
        ours = table.layer_norm(place(x), *ends, eps=1e-5)
        # A width of one leaves nothing but what rounding makes of x - x.
        close(ours, reference.layer_norm(x, *((weight, bias) if affine else (None, None)), eps=1e-5), 1e-5)


def test_rope_turns_what_the_reference_turns(pool, memory, place, random, close):
    for shape, rotated, interleaved in product(HEADS, [1.0, 0.5], [False, True]):
        tokens, heads, size = shape
        q, k = random(tokens, heads, size), random(tokens, 1 + heads // 2, size)
        angle = random(tokens, int(size * rotated) // 2, scale=3.0)
        cos, sin = memory.filled(angle.cos()), memory.filled(angle.sin())
        ours = table.rope(place(q), place(k), cos, sin, interleaved=interleaved)
        theirs = reference.rope(q, k, cos, sin, interleaved=interleaved)
        for one, other in zip(ours, theirs, strict=True):
            close(one, other)


def test_activations_are_the_references(pool, place, random, close):
    for shape, kind in product(SHAPES, ACTIVATIONS):
        x = random(*shape, scale=4.0)
        close(table.activation(place(x), kind), reference.activation(x, kind))


def test_gated_activations_are_the_references(pool, place, random, close):
    for shape, kind in product(SHAPES, ACTIVATIONS):
        x = random(shape[0], 2 * shape[1], scale=2.0)
        close(table.gated_activation(place(x), kind), reference.gated_activation(x, kind))


def test_activations_of_what_is_very_large_or_no_number_are_the_references(pool, memory):
    for kind in ACTIVATIONS:
        x = torch.tensor([[math.nan, 1e30, -1e30, 200.0, -200.0, 0.0, -0.0, 1e-30, 88.0, -88.0, 1.0] * 2])
        ours, theirs = table.activation(memory.filled(x), kind), reference.activation(x, kind)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_softcap_and_add_are_the_references(pool, memory, random, close):
    for shape in SHAPES:
        x, y = random(*shape, scale=40.0), random(*shape)
        close(table.softcap(memory.filled(x), 7.5), reference.softcap(x, 7.5))
        assert torch.equal(table.add(memory.filled(x), memory.filled(y)), x + y)


def test_embedding_takes_rows_of_a_plain_table(pool, memory, random):
    for shape in SHAPES:
        weight = random(19, shape[1])
        ids = torch.randint(19, (shape[0],), generator=torch.Generator().manual_seed(1))
        assert torch.equal(table.embedding(memory.filled(ids), memory.filled(weight)), weight[ids])
        if len(ids) > 1:  # ids that lie apart, and narrow ones
            assert torch.equal(table.embedding(ids[::2], weight), weight[ids[::2]])
        assert torch.equal(table.embedding(ids.int(), weight), weight[ids])


def test_greedy_finds_the_first_of_the_largest(pool, memory, place, random):
    for rows, width in product([0, 1, 9], [1, 15, 16, 255, 256, 257, 1000]):
        logits = random(rows, width).mul(4).round()  # many equal ones
        ids, values = table.greedy(place(logits))
        expected_ids, expected = reference_sampling.greedy(logits)
        assert torch.equal(ids, expected_ids) and torch.equal(values, expected)


def test_greedy_tells_rows_that_cannot_be_drawn_from(pool, memory, random):
    for width in [7, 16, 300, 513]:
        logits = random(6, width)
        logits[0, width // 2] = math.nan
        logits[1, -1] = math.inf
        logits[2] = -math.inf
        logits[3, 0] = logits[3, -1] = math.inf
        logits[4, : width // 2] = -math.inf
        ids, values = table.greedy(memory.filled(logits))
        expected_ids, expected = reference_sampling.greedy(logits)
        assert torch.equal(values.isnan(), expected.isnan()) and values[0].isnan()
        assert torch.equal(values[1:], expected[1:])
        assert torch.equal(ids[1:], expected_ids[1:])


def test_other_precisions_and_layouts_run_on_the_reference(pool, random):
    x, weight = random(3, 32), random(32)
    for narrow in (torch.bfloat16, torch.float16):
        y, w = x.to(narrow), weight.to(narrow)
        assert torch.equal(table.rms_norm(y, w, eps=1e-5), reference.rms_norm(y, w, eps=1e-5))
        assert torch.equal(table.layer_norm(y, w, w, eps=1e-5), reference.layer_norm(y, w, w, eps=1e-5))
        assert torch.equal(table.activation(y, "silu"), reference.activation(y, "silu"))
        assert torch.equal(table.gated_activation(y, "silu"), reference.gated_activation(y, "silu"))
        assert torch.equal(table.softcap(y, 2.0), reference.softcap(y, 2.0))
        assert torch.equal(table.add(y, y), y + y)
        assert torch.equal(table.embedding(torch.tensor([1]), y), y[1:2])
        assert torch.equal(table.greedy(y)[0], reference_sampling.greedy(y)[0])
    turned = x.t()  # columns lie apart
    assert torch.equal(table.activation(turned, "relu"), turned.relu())
    assert torch.equal(table.add(turned, turned), turned + turned)
    assert torch.equal(table.greedy(turned)[0], reference_sampling.greedy(turned)[0])
    apart = random(64)[::2]
    assert torch.equal(table.rms_norm(x, apart, eps=1e-5), reference.rms_norm(x, apart, eps=1e-5))
    assert torch.equal(table.layer_norm(x, apart, apart, eps=1e-5), reference.layer_norm(x, apart, apart, eps=1e-5))


def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(isa, pool_of, random):
    """REL-15: norms, activations, rotation."""
    x, weight, bias = random(70, 77), random(77), random(77)
    heads, angle = x[:, :60].reshape(70, 3, 20), random(70, 10)

    def results(rows):
        part, turned = x[rows].contiguous(), heads[rows].contiguous()
        cos, sin = angle[rows].cos(), angle[rows].sin()
        yield table.rms_norm(part, weight, eps=1e-5)
        yield table.layer_norm(part, weight, bias, eps=1e-5)
        yield table.softcap(part, 3.0)
        yield from (table.activation(part, kind) for kind in ACTIVATIONS)
        yield table.rope(turned, turned, cos, sin)[0]

    with using(pool_of(isa, 1)):
        whole = list(results(slice(0, 70)))
        for start, stop in ((0, 1), (3, 5), (17, 34), (69, 70)):
            for one, all_of_it in zip(results(slice(start, stop)), whole, strict=True):
                assert torch.equal(one, all_of_it[start:stop])
    for threads in (2, 3):
        with using(pool_of(isa, threads)):
            assert all(map(torch.equal, results(slice(0, 70)), whole))
