"""Every op of the table in plain torch: the specification that faster versions are checked against.

Signatures, shapes and formulas stand in `quire.ops`; this file only says how.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """See `quire.ops.embedding`."""
    return F.embedding(token_ids, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `quire.ops.linear`."""
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False) -> Tensor:
    """See `quire.ops.rms_norm`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if plus_one:
        return (normed * (1.0 + weight.float())).to(x.dtype)
    return weight * normed.to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, plus_one: bool = False
) -> tuple[Tensor, Tensor]:
    """See `quire.ops.add_rms_norm`."""
    total = x + residual
    return rms_norm(total, weight, eps=eps, plus_one=plus_one), total


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    """See `quire.ops.layer_norm`."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """See `quire.ops.rope`."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [T, 1, N]
    return _rotate(q, cos, sin, interleaved), _rotate(k, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        return torch.cat((torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2), rest), dim=-1)
    a, b = turned[..., :half], turned[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def activation(x: Tensor, kind: str) -> Tensor:
    """See `quire.ops.activation`."""
    match kind:
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu_quick":
            return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown activation {kind!r}")


def gated_activation(x: Tensor, kind: str) -> Tensor:
    """See `quire.ops.gated_activation`."""
    gate, up = x.chunk(2, dim=-1)
    return activation(gate, kind) * up


def add(x: Tensor, y: Tensor) -> Tensor:
    """See `quire.ops.add`."""
    return x + y


def softcap(x: Tensor, cap: float) -> Tensor:
    """See `quire.ops.softcap`."""
    return torch.tanh(x / cap) * cap


def route(logits: Tensor, num_chosen: int, *, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See `quire.ops.route`."""
    # Not topk, which picks any of equal ones.
    ranked, order = logits.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    weights, ids = ranked[:, :num_chosen], order[:, :num_chosen]
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights), ids


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor, *, kind: str) -> Tensor:
    """See `quire.ops.experts`."""
    out = torch.zeros_like(x)
    for expert in torch.unique(ids).tolist():
        tokens, choice = torch.where(ids == expert)
        hidden = gated_activation(F.linear(x[tokens], gate_up[expert]), kind)  # [tokens, F]
        out[tokens] += (F.linear(hidden, down[expert]) * weights[tokens, choice, None]).to(x.dtype)
    return out


def write_kv(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    """See `quire.ops.write_kv`."""
    page_size = kv.shape[3]
    pages, offsets = slots // page_size, slots % page_size
    kv[0, pages, :, offsets] = k.to(kv.dtype)
    kv[1, pages, :, offsets] = v.to(kv.dtype)
