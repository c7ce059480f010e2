"""The op table: every stateless kernel a model calls, with shapes and formula; each runs where its first tensor lives.

Dimension letters, used all over the package:
T tokens in the step · R requests (rows) · H query heads · K kv heads · D head size · E model width · F MLP width ·
P pages · S page size · V vocabulary · X experts · A experts chosen per token.

An op's result for a row depends on that row only. `ops/reference.py` holds every op in plain torch and is the
specification; faster modules are listed in `ops/dispatch.py` and may lack ops. Attention is a seam of its own
(`attention/interface.py`). Norms and softmax compute in float32 whatever the dtype of their input, and return that
dtype.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from quire.ops.cpu.weights import PackedMatrix
from quire.ops.dispatch import implementation

ACTIVATIONS = ("silu", "relu", "gelu", "gelu_tanh", "gelu_quick")
"""silu x·σ(x) · relu max(x, 0) · gelu x·Φ(x) · gelu_tanh its tanh approximation · gelu_quick x·σ(1.702x)."""

Pair = tuple[Tensor, Tensor]


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` [V, E] for `token_ids` [T] int64: [T, E]."""
    return cast(Tensor, implementation(weight.device.type, "embedding")(token_ids, weight))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias: x [T, in], weight [out, in], bias [out] → [T, out]."""
    return cast(Tensor, implementation(x.device.type, "linear")(x, weight, bias))


def packed_embedding(token_ids: Tensor, weight: PackedMatrix, *, scale: float = 1.0, offset: int = 0) -> Tensor:
    """scale · rows `token_ids` + offset of a packed table [V, E], dequantized: token_ids [T] int64 → [T, E] float32."""
    run = implementation("cpu", "packed_embedding")
    return cast(Tensor, run(token_ids, weight, scale=scale, offset=offset))


def packed_linear(x: Tensor, weight: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias for a packed weight [out, in]: x [T, in] float32 → [T, out] float32.

    Sums run over `in` in order. Quantized formats take x as int16 with one scale per row, and sum products in int32.
    """
    return cast(Tensor, implementation("cpu", "packed_linear")(x, weight, bias))


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich, 2019); x [..., N], weight [N].

    Plain: the normalised value is rounded to x's dtype before the product with weight. `plus_one` (Gemma): the factor
    is 1 + weight, applied in float32.
    """
    return cast(Tensor, implementation(x.device.type, "rms_norm")(x, weight, eps=eps, plus_one=plus_one))


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False) -> Pair:
    """(rms_norm(s), s) with s = x + residual; x, residual [T, E]. Neither input is changed."""
    run = implementation(x.device.type, "add_rms_norm")
    return cast(Pair, run(x, residual, weight, eps=eps, plus_one=plus_one))


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al., 2016); var is biased."""
    return cast(Tensor, implementation(x.device.type, "layer_norm")(x, weight, bias, eps=eps))


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Pair:
    """Rotate the first 2·N numbers of each head: q [T, H, D], k [T, K, D], cos and sin [T, N], N ≤ D / 2.

    A pair (a, b) becomes (a·cos - b·sin, b·cos + a·sin). Pair i is (i, i + N) as in GPT-NeoX, or (2i, 2i + 1) as in
    GPT-J when `interleaved`. The rest of the head passes through.
    """
    return cast(Pair, implementation(q.device.type, "rope")(q, k, cos, sin, interleaved=interleaved))


def activation(x: Tensor, kind: str) -> Tensor:
    """One of `ACTIVATIONS`, elementwise."""
    return cast(Tensor, implementation(x.device.type, "activation")(x, kind))


def gated_activation(x: Tensor, kind: str) -> Tensor:
    """activation(gate) · up for x [T, 2F] = gate | up → [T, F] (silu: SwiGLU; gelu: GeGLU; Shazeer, 2020)."""
    return cast(Tensor, implementation(x.device.type, "gated_activation")(x, kind))


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, both [T, E]."""
    return cast(Tensor, implementation(x.device.type, "add")(x, y))


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap), elementwise."""
    return cast(Tensor, implementation(x.device.type, "softcap")(x, cap))


def route(logits: Tensor, num_chosen: int, *, renormalize: bool) -> Pair:
    """Softmax over experts, then the `num_chosen` largest: logits [T, X] → weights float32 [T, A], ids int64 [T, A].

    Of equal ones the lower id is chosen first. `renormalize` scales each row's weights to sum to one.
    """
    return cast(Pair, implementation(logits.device.type, "route")(logits, num_chosen, renormalize=renormalize))


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor, *, kind: str) -> Tensor:
    """Σ over chosen experts e of weight_e · down_e · gated_activation(gate_up_e · x), per token.

    x [T, E], gate_up [X, 2F, E], down [X, E, F], weights and ids [T, A] → [T, E]. The sum runs in the order of expert
    ids, in x's dtype. The ids of a row differ from each other, as those of `route` do.
    """
    return cast(Tensor, implementation(x.device.type, "experts")(x, gate_up, down, weights, ids, kind=kind))


def packed_experts(
    x: Tensor, gate_up: PackedMatrix, down: PackedMatrix, weights: Tensor, ids: Tensor, *, kind: str
) -> Tensor:
    """`experts` with packed weights, X matrices each, and products as of `packed_linear`: x [T, E] float32."""
    return cast(Tensor, implementation("cpu", "packed_experts")(x, gate_up, down, weights, ids, kind=kind))


def write_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    """Put k, v [T, K, D] into the pages kv [2, P, K, S, D] at slots [T] int64 (page · S + offset), in kv's dtype."""
    implementation(kv.device.type, "write_kv")(k, v, kv, slots)
