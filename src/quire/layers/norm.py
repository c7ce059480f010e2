"""Normalisation layers. Each can also add the residual it is applied to, so that a backend may fuse the two."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from quire import ops
from quire.layers.context import BuildContext
from quire.quant.interface import WeightSlot


def parameter(context: BuildContext, *shape: int) -> nn.Parameter:
    """An unfilled, frozen tensor in the model's dtype, on its device."""
    return nn.Parameter(torch.empty(shape, dtype=context.dtype, device=context.device), requires_grad=False)


def whole_slot(name: str, tensor: Tensor) -> WeightSlot:
    """The slot of a tensor that the checkpoint stores as it is."""
    return WeightSlot(name=name, shape=tuple(tensor.shape), target=tensor.data)


class RMSNorm(nn.Module):
    """`ops.rms_norm` with its weight; `plus_one` is Gemma's 1 + weight."""

    def __init__(self, size: int, *, eps: float, context: BuildContext, plus_one: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.plus_one = plus_one
        self.weight = parameter(context, size)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] → the same shape."""
        return ops.rms_norm(x, self.weight, eps=self.eps, plus_one=self.plus_one)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual) for [T, E]; the first block of a model has no residual yet."""
        if residual is None:
            return self(x), x
        return ops.add_rms_norm(x, residual, self.weight, eps=self.eps, plus_one=self.plus_one)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The weight."""
        yield whole_slot(f"{name}.weight", self.weight)


class LayerNorm(nn.Module):
    """`ops.layer_norm` with weight and bias, or with neither where the checkpoint has none."""

    def __init__(self, size: int, *, eps: float, context: BuildContext, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(context, size) if affine else None
        self.bias = parameter(context, size) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] → the same shape."""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual) for [T, E]; the first block of a model has no residual yet."""
        total = x if residual is None else ops.add(x, residual)
        return self(total), total

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """Weight and bias, where there are any."""
        if self.weight is not None and self.bias is not None:
            yield whole_slot(f"{name}.weight", self.weight)
            yield whole_slot(f"{name}.bias", self.bias)


Norm = RMSNorm | LayerNorm
