"""The seam between layers and weight formats: what a linear layer asks for (`LinearSpec`) and what a scheme answers.

A scheme creates the storage of a layer's weights, says which checkpoint tensors fill it (`WeightSlot`) and applies it.
Rows of the product of a fused layer are its parts', one after the other; the checkpoint may hold them apart or fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quire.base.errors import WeightError


@dataclass(slots=True, kw_only=True)
class WeightSlot:
    """A place that one checkpoint tensor fills."""

    name: str
    """The tensor's full name in the checkpoint."""
    shape: tuple[int, ...]
    """The tensor's shape in the checkpoint."""
    target: Tensor
    """Where it goes: a parameter, or a view of the part of one."""
    cut: Callable[[Tensor], Tensor] | None = None
    """Turns the checkpoint's order or orientation into the target's; None copies as it is."""
    fills: tuple[str, ...] = ()
    """For an alternative tensor: names of the slots that need no tensor of their own once this one is loaded."""

    def load(self, tensor: Tensor) -> None:
        """Copy `tensor` in, in the target's dtype and device.

        Raises:
            WeightError: when its shape is not `shape`.
        """
        if tuple(tensor.shape) != self.shape:
            raise WeightError(f"{self.name} has shape {list(tensor.shape)}; config.json implies {list(self.shape)}")
        self.target.copy_(tensor if self.cut is None else self.cut(tensor))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a linear layer that the checkpoint stores under one name."""

    name: str
    """Name of the checkpoint's module, a sibling of the layer; empty where it is the layer's own."""
    size: int
    """Output rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One linear layer: its shape and how the checkpoint stores it."""

    in_features: int
    parts: tuple[Part, ...]
    bias: bool = False
    transposed: bool = False
    """The checkpoint's weight is [in, out] (GPT-2)."""
    reorder: Callable[[Tensor], Tensor] | None = None
    """Puts the rows (dimension 0) of a fused checkpoint tensor, weight or bias, into this layer's order."""

    @property
    def out_features(self) -> int:
        """Output rows of all parts."""
        return sum(part.size for part in self.parts)


class LinearLayer(Protocol):
    """A linear layer with its weights: what a scheme makes. Implementations are torch modules."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] → [T, out]."""

    def weight_slots(self, name: str) -> Iterable[WeightSlot]:
        """The checkpoint tensors that fill it; names are relative to the parent of the module called `name`."""


class QuantScheme(Protocol):
    """A weight format."""

    name: str

    def linear(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """A `LinearLayer` with unfilled weights; `dtype` is that of the activations."""
