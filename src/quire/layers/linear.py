"""Constructors of linear layers: plain, fused from parts, or cut from a checkpoint that fuses.

The context's scheme owns the weights; this file only says what to ask it for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quire.layers.context import BuildContext
from quire.quant.interface import LinearSpec, Part


def linear(
    context: BuildContext, in_features: int, out_features: int, *, bias: bool = False, transposed: bool = False
) -> nn.Module:
    """A layer that the checkpoint stores under its own name."""
    return build(
        context,
        LinearSpec(in_features=in_features, parts=(Part("", out_features),), bias=bias, transposed=transposed),
    )


def fused(
    context: BuildContext, in_features: int, parts: Sequence[tuple[str, int]], *, bias: bool = False
) -> nn.Module:
    """One product for several checkpoint modules that read the same input: (name, rows) each."""
    return build(context, LinearSpec(in_features=in_features, parts=tuple(Part(*part) for part in parts), bias=bias))


def build(context: BuildContext, spec: LinearSpec) -> nn.Module:
    """What the context's scheme makes of a specification."""
    return context.scheme.linear(spec, dtype=context.dtype, device=context.device)


def regroup_qkv(tensor: Tensor, *, groups: int, queries: int, head_dim: int) -> Tensor:
    """Rows [groups, queries + k + v, head_dim] of a fused checkpoint tensor → all queries, all keys, all values.

    GPT-NeoX has one query per group; Falcon 40B as many as query heads share a kv head; Falcon 7B has one group.
    """
    rows = tensor.reshape(groups, queries + 2, head_dim, *tensor.shape[1:])
    cuts = (rows[:, :queries], rows[:, queries : queries + 1], rows[:, queries + 1 :])
    return torch.cat([cut.reshape(-1, *tensor.shape[1:]) for cut in cuts])
