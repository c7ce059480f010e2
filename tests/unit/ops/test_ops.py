"""Every op against its formula, written out in float64, for every implementation, dtype and a spread of shapes."""

from __future__ import annotations

import math

import pytest
import torch

import quire.ops
import quire.ops.reference

ROWS = (1, 3, 17)
WIDTHS = (8, 33, 256)


def wide(*tensors):
    return [tensor.double().cpu() for tensor in tensors]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_is_a_matrix_product_with_an_optional_bias(op, random, close, rows, width):
    x, weight, bias = random(rows, width), random(5, width, scale=width**-0.5), random(5)
    wx, ww, wb = wide(x, weight, bias)
    close(op("linear")(x, weight, bias), wx @ ww.T + wb)
    close(op("linear")(x, weight), wx @ ww.T)


def test_embedding_takes_rows_of_the_table(op, random):
    table = random(11, 6)
    ids = torch.tensor([3, 0, 10, 3], device=table.device)
    assert torch.equal(op("embedding")(ids, table), table[[3, 0, 10, 3]])


def naive_rms_norm(x, weight, eps):
    return torch.stack([row / math.sqrt(sum(v * v for v in row.tolist()) / len(row) + eps) for row in x]) * weight


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm_divides_by_the_root_mean_square(op, random, close, rows, width, plus_one):
    x, weight = random(rows, width, scale=3.0), random(width)
    wx, ww = wide(x, weight)
    expected = naive_rms_norm(wx, ww + 1.0 if plus_one else ww, 1e-3)
    close(op("rms_norm")(x, weight, eps=1e-3, plus_one=plus_one), expected)


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm_returns_the_norm_of_the_sum_and_the_sum(op, random, close, rows, plus_one):
    x, residual, weight = random(rows, 48), random(rows, 48), random(48)
    before = x.clone(), residual.clone()
    normed, total = op("add_rms_norm")(x, residual, weight, eps=1e-6, plus_one=plus_one)
    assert torch.equal(total, x + residual)
    (ww,) = wide(weight)
    close(normed, naive_rms_norm(total.double().cpu(), ww + 1.0 if plus_one else ww, 1e-6))
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm_centres_scales_and_shifts(op, random, close, width, affine):
    x, weight, bias = random(4, width, scale=2.0), random(width), random(width)
    wx, ww, wb = wide(x, weight, bias)
    centred = wx - wx.mean(-1, keepdim=True)
    expected = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    if affine:
        close(op("layer_norm")(x, weight, bias, eps=1e-5), expected * ww + wb)
    else:
        close(op("layer_norm")(x, None, None, eps=1e-5), expected)


def naive_rotation(x, cos, sin, interleaved):
    out = x.clone()
    for token in range(x.shape[0]):
        for pair in range(cos.shape[1]):
            i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + cos.shape[1])
            c, s = cos[token, pair], sin[token, pair]
            out[token, :, i] = x[token, :, i] * c - x[token, :, j] * s
            out[token, :, j] = x[token, :, j] * c + x[token, :, i] * s
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "size", "pairs"), [(4, 2, 8, 4), (3, 1, 10, 2), (1, 1, 64, 32)])
def test_rope_turns_pairs_and_passes_the_rest(op, random, close, heads, kv_heads, size, pairs, interleaved):
    q, k = random(5, heads, size), random(5, kv_heads, size)
    angle = torch.rand(5, pairs, generator=torch.Generator().manual_seed(2)) * 6
    cos, sin = angle.cos().to(q), angle.sin().to(q)
    wq, wk, wc, ws = wide(q, k, cos, sin)
    turned_q, turned_k = op("rope")(q, k, cos, sin, interleaved=interleaved)
    close(turned_q, naive_rotation(wq, wc, ws, interleaved))
    close(turned_k, naive_rotation(wk, wc, ws, interleaved))


NAIVE = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_quick": lambda x: x / (1 + torch.exp(-1.702 * x)),
}


def test_every_activation_of_the_table_has_a_formula_here():
    assert set(NAIVE) == set(quire.ops.ACTIVATIONS)


@pytest.mark.parametrize("kind", NAIVE)
def test_activations_match_their_formulas(op, random, close, kind):
    x = random(3, 70, scale=3.0)
    close(op("activation")(x, kind), NAIVE[kind](*wide(x)))


@pytest.mark.parametrize("kind", NAIVE)
@pytest.mark.parametrize("rows", ROWS)
def test_gated_activation_multiplies_the_second_half(op, random, close, kind, rows):
    x = random(rows, 2 * 24)
    (wx,) = wide(x)
    close(op("gated_activation")(x, kind), NAIVE[kind](wx[:, :24]) * wx[:, 24:])


def test_an_unknown_activation_is_refused(op, random):
    with pytest.raises(ValueError, match="unknown activation 'mish'"):
        op("activation")(random(1, 2), "mish")


def test_softcap_bounds_by_a_tanh(op, random, close):
    x = random(4, 9, scale=40.0)
    close(op("softcap")(x, 5.0), 5.0 * torch.tanh(wide(x)[0] / 5.0))


@pytest.mark.parametrize("renormalize", [False, True])
def test_route_picks_the_most_likely_experts(op, random, close, renormalize):
    logits = random(6, 5, scale=2.0)
    weights, ids = op("route")(logits, 2, renormalize=renormalize)
    (wl,) = wide(logits)
    probabilities = torch.exp(wl) / torch.exp(wl).sum(-1, keepdim=True)
    for row in range(6):
        best = sorted(range(5), key=lambda e: -probabilities[row, e])[:2]
        assert ids[row].tolist() == best
        expected = probabilities[row, best]
        expected = expected / expected.sum() if renormalize else expected
        assert weights.dtype == torch.float32
        assert torch.allclose(weights[row].double().cpu(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_experts_add_up_weighted_gated_mlps(op, random, close, kind):
    x, gate_up, down = random(7, 16), random(4, 24, 16, scale=0.25), random(4, 16, 12, scale=0.25)
    logits = random(7, 4)
    weights, ids = quire.ops.reference.route(logits.cpu(), 2, renormalize=True)
    expected = torch.zeros(7, 16, dtype=torch.double)
    wx, wg, wd = wide(x, gate_up, down)
    for token in range(7):
        for weight, expert in zip(weights[token].double(), ids[token].tolist(), strict=True):
            gate, up = (wg[expert] @ wx[token]).split(12)
            expected[token] += weight * (wd[expert] @ (NAIVE[kind](gate) * up))
    close(op("experts")(x, gate_up, down, weights.to(x.device), ids.to(x.device), kind=kind), expected)


@pytest.mark.parametrize("page_size", [8, 16])
def test_write_kv_puts_each_token_in_its_slot_and_touches_no_other(op, random, page_size):
    k, v = random(5, 3, 4), random(5, 3, 4)
    kv = torch.full((2, 4, 3, page_size, 4), float("nan"), dtype=k.dtype, device=k.device)
    slots = [0, 2 * page_size + 1, page_size - 1, 3 * page_size, page_size]
    op("write_kv")(k, v, kv, torch.tensor(slots, device=k.device))
    for token, slot in enumerate(slots):
        page, offset = divmod(slot, page_size)
        assert torch.equal(kv[0, page, :, offset], k[token])
        assert torch.equal(kv[1, page, :, offset], v[token])
    assert kv.isnan().any(-1).sum() == 2 * 3 * (4 * page_size - 5)


def test_write_kv_rounds_to_the_cache_dtype(op, random):
    k = random(1, 1, 8)
    kv = torch.zeros((2, 1, 1, 8, 8), dtype=torch.bfloat16, device=k.device)
    op("write_kv")(k, k, kv, torch.tensor([2], device=k.device))
    assert torch.equal(kv[0, 0, :, 2], k[0].bfloat16())
