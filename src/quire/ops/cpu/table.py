"""The op table's functions on the compiled kernels, for float32 activations; other precisions run the reference.

Signatures, shapes and formulas stand in `quire.ops`; the fields of each record stand at its kernel in csrc.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from quire.ops import reference, reference_sampling
from quire.ops.cpu.library import OpRecord
from quire.ops.cpu.program import current_pool, empty
from quire.ops.cpu.weights import FORMATS, PackedMatrix

KINDS = {
    name: number
    for number, name in enumerate(
        (
            "embedding",
            "linear",
            "rms_norm",
            "layer_norm",
            "rope",
            "activation",
            "gated_activation",
            "softcap",
            "add",
            "attention",
            "route",
            "experts",
            "greedy",
            "draw",
            "uniform",
            "read_tokens",
            "append_tokens",
            "mask_tokens",
        )
    )
}
_ACTIVATIONS = {"silu": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "gelu_quick": 4}
_PLAIN_TABLE = -1


def record(
    kind: str, tensors: Sequence[Tensor | None], numbers: Sequence[int] = (), floats: Sequence[float] = ()
) -> OpRecord:
    """An op record with these fields."""
    result = OpRecord(kind=KINDS[kind])
    for index, tensor in enumerate(tensors):
        if tensor is not None:
            result.p[index] = tensor.data_ptr()
    result.n = (ctypes.c_int64 * 12)(*numbers)
    result.f = (ctypes.c_float * 4)(*floats)
    return result


def _is_float(*tensors: Tensor | None) -> bool:
    return all(t is None or t.dtype == torch.float32 for t in tensors)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are float32 numbers one after the other: what the kernels expect of weights."""
    return all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors)


def _ids(token_ids: Tensor) -> Tensor:
    """The ids as the kernels read them."""
    return token_ids.to(torch.int64).contiguous()


def _rows_of(x: Tensor) -> tuple[int, int, int, int] | None:
    """x [..., N] as (rows, rows per group, stride of groups, stride within one), or None where strides do not allow."""
    if x.stride(-1) != 1:
        return None
    if x.dim() == 2:
        return x.shape[0], 1, x.stride(0), 0
    if x.dim() == 3:
        return x.shape[0] * x.shape[1], x.shape[1], x.stride(0), x.stride(1)
    return None


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """See `quire.ops.embedding`."""
    if not _is_plain(weight):
        return reference.embedding(token_ids, weight)
    token_ids, size = _ids(token_ids), weight.shape[1]
    out = empty((*token_ids.shape, size))
    fields = (size, _PLAIN_TABLE, size, 0)
    current_pool().submit(record("embedding", (token_ids, weight, out), fields, (1.0,)), token_ids.numel())
    return out


def packed_embedding(token_ids: Tensor, weight: PackedMatrix, *, scale: float, offset: int) -> Tensor:
    """See `quire.ops.packed_embedding`."""
    token_ids, size = _ids(token_ids), weight.columns
    out = empty((*token_ids.shape, size))
    fields = (size, FORMATS[weight.weight_format], size, offset)
    op = record("embedding", (token_ids, weight.storage, out), fields, (scale,))
    current_pool().submit(op, token_ids.numel())
    return out


def packed_linear(x: Tensor, weight: PackedMatrix, bias: Tensor | None) -> Tensor:
    """See `quire.ops.packed_linear`.

    Raises:
        ValueError: x or bias does not fit the weight, whose memory the kernels would read past.
    """
    is_bias = bias is None or (_is_plain(bias) and bias.shape == (weight.rows,))
    if x.dim() != 2 or x.shape[1] != weight.columns or x.dtype != torch.float32 or not is_bias:
        raise ValueError(
            f"x {list(x.shape)} {x.dtype} or the bias does not fit a weight [{weight.rows}, {weight.columns}]"
        )
    x = x.contiguous() if x.stride(-1) != 1 else x
    out = empty((x.shape[0], weight.rows))
    fields = (weight.rows, weight.columns, FORMATS[weight.weight_format], x.stride(0), weight.rows)
    current_pool().submit(record("linear", (x, out, weight.storage, bias), fields), x.shape[0])
    return out


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False) -> Tensor:
    """See `quire.ops.rms_norm`."""
    rows = _rows_of(x)
    if rows is None or not _is_float(x) or not _is_plain(weight):
        return reference.rms_norm(x, weight, eps=eps, plus_one=plus_one)
    out = empty(x.shape)
    count, group, stride, inner = rows
    size = x.shape[-1]
    fields = (size, group, stride, inner, group * size, size, int(plus_one))
    current_pool().submit(record("rms_norm", (x, None, weight, out), fields, (eps,)), count)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False
) -> tuple[Tensor, Tensor]:
    """See `quire.ops.add_rms_norm`."""
    if not _is_float(x) or not _is_plain(residual, weight) or x.dim() != 2 or x.stride(-1) != 1:
        return reference.add_rms_norm(x, residual, weight, eps=eps, plus_one=plus_one)
    out, total = empty(x.shape), empty(x.shape)
    size = x.shape[-1]
    fields = (size, 1, x.stride(0), 0, size, 0, int(plus_one))
    current_pool().submit(record("rms_norm", (x, residual, weight, out, total), fields, (eps,)), x.shape[0])
    return out, total


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `quire.ops.layer_norm`."""
    rows = _rows_of(x)
    if rows is None or not _is_float(x) or not _is_plain(weight, bias):
        return reference.layer_norm(x, weight, bias, eps=eps)
    out = empty(x.shape)
    count, group, stride, inner = rows
    size = x.shape[-1]
    fields = (size, group, stride, inner, group * size, size)
    current_pool().submit(record("layer_norm", (x, weight, bias, out), fields, (eps,)), count)
    return out


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rope`."""
    inner = all(t.stride(2) == 1 and t.stride(1) == t.shape[2] for t in (q, k))
    if not inner or not _is_float(q, k) or not _is_plain(cos, sin):
        return reference.rope(q, k, cos, sin, interleaved=interleaved)
    turned = []
    for x in (q, k):
        out = empty(x.shape)
        fields = (x.shape[1], x.shape[2], cos.shape[-1], x.stride(0), out.stride(0), int(interleaved))
        current_pool().submit(record("rope", (x, cos, sin, out), fields), x.shape[0])
        turned.append(out)
    return turned[0], turned[1]


def activation(x: Tensor, kind: str) -> Tensor:
    """See `quire.ops.activation`."""
    if kind not in _ACTIVATIONS or not _is_float(x) or x.dim() != 2 or x.stride(-1) != 1:
        return reference.activation(x, kind)
    out = empty(x.shape)
    fields = (x.shape[-1], _ACTIVATIONS[kind], x.stride(0), out.stride(0))
    current_pool().submit(record("activation", (x, out), fields), x.shape[0])
    return out


def gated_activation(x: Tensor, kind: str) -> Tensor:
    """See `quire.ops.gated_activation`."""
    if kind not in _ACTIVATIONS or not _is_float(x) or x.dim() != 2 or x.stride(-1) != 1:
        return reference.gated_activation(x, kind)
    size = x.shape[-1] // 2
    out = empty((x.shape[0], size))
    fields = (size, _ACTIVATIONS[kind], x.stride(0), size)
    current_pool().submit(record("gated_activation", (x, out), fields), x.shape[0])
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """See `quire.ops.softcap`."""
    if not _is_plain(x) or x.dim() != 2:
        return reference.softcap(x, cap)
    out = empty(x.shape)
    current_pool().submit(record("softcap", (x, out), (x.shape[-1],), (cap,)), x.shape[0])
    return out


def add(x: Tensor, y: Tensor) -> Tensor:
    """See `quire.ops.add`."""
    if not _is_plain(x, y) or x.dim() != 2 or x.shape != y.shape:
        return reference.add(x, y)
    out = empty(x.shape)
    current_pool().submit(record("add", (x, y, out), (x.shape[-1],)), x.shape[0])
    return out


def route(logits: Tensor, num_chosen: int, *, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.route`."""
    if not _is_float(logits) or not logits.is_contiguous():
        return reference.route(logits, num_chosen, renormalize=renormalize)
    tokens, num_experts = logits.shape
    weights, ids = empty((tokens, num_chosen)), empty((tokens, num_chosen), torch.int64)
    fields = (num_experts, num_chosen, int(renormalize))
    current_pool().submit(record("route", (logits, weights, ids), fields), tokens)
    return weights, ids


def packed_experts(
    x: Tensor, gate_up: PackedMatrix, down: PackedMatrix, weights: Tensor, ids: Tensor, *, kind: str
) -> Tensor:
    """See `quire.ops.packed_experts`."""
    x, weights, ids = x.contiguous(), weights.contiguous(), ids.contiguous()
    out = empty(x.shape)
    sizes = (down.columns, down.rows, gate_up.count, ids.shape[1])
    fields = (*sizes, _ACTIVATIONS[kind], FORMATS[gate_up.weight_format])
    op = record("experts", (x, gate_up.storage, down.storage, weights, ids, out), fields)
    current_pool().submit(op, x.shape[0])
    return out


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `quire.ops.sampling.greedy`."""
    if not _is_float(logits) or logits.stride(-1) != 1:
        return reference_sampling.greedy(logits)
    ids, values = empty(logits.shape[:1], torch.int64), empty(logits.shape[:1])
    fields = (logits.shape[1], logits.stride(0))
    current_pool().submit(record("greedy", (logits, ids, values), fields), logits.shape[0])
    return ids, values


def draw(
    logits: Tensor, *, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `quire.ops.sampling.draw`."""
    if not _is_float(logits, temperature) or logits.stride(-1) != 1:
        return reference_sampling.draw(
            logits, temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p, uniform=uniform
        )
    temperature, min_p, top_k, top_p, uniform = (
        x.contiguous() for x in (temperature, min_p.double(), top_k, top_p.double(), uniform)
    )
    pool, ids = current_pool(), empty(logits.shape[:1], torch.int64)
    fields = (logits.shape[1], logits.stride(0), pool.threads)
    op = record("draw", (logits, ids, temperature, min_p, top_k, top_p, uniform), fields)
    pool.submit(op, logits.shape[0])
    return ids


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """See `quire.ops.sampling.uniform`."""
    seeds, positions = seeds.contiguous(), positions.contiguous()
    out = empty(seeds.shape, torch.float64)
    current_pool().submit(record("uniform", (seeds, positions, out)), seeds.shape[0])
    return out


def read_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """See `quire.ops.sampling.read_tokens`."""
    places, out = places.contiguous(), empty(places.shape, torch.int64)
    current_pool().submit(record("read_tokens", (tokens, places, out)), places.shape[0])
    return out


def append_tokens(tokens: Tensor, places: Tensor, ids: Tensor) -> None:
    """See `quire.ops.sampling.append_tokens`."""
    places, ids = places.contiguous(), ids.contiguous()
    current_pool().submit(record("append_tokens", (tokens, places, ids)), places.shape[0])


def mask_tokens(logits: Tensor, lines: Tensor, masks: Tensor, *, ids: Tensor, largest: Tensor) -> None:
    """See `quire.ops.sampling.mask_tokens`."""
    if not _is_float(logits) or logits.stride(-1) != 1 or logits.shape[-1] > 32 * masks.shape[-1]:
        reference_sampling.mask_tokens(logits, lines, masks, ids=ids, largest=largest)
        return
    lines, masks = lines.contiguous(), masks.contiguous()
    fields = (logits.shape[1], logits.stride(0), masks.shape[1])
    current_pool().submit(record("mask_tokens", (logits, lines, masks, ids, largest), fields), lines.shape[0])
