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
    is_exact: bool = False
    """Never held in less than the precision it is stored in: the small router of experts, whose choices jump."""
    reorder: Callable[[Tensor], Tensor] | None = None
    """Puts the rows (dimension 0) of a fused checkpoint tensor, weight or bias, into this layer's order."""

    @property
    def out_features(self) -> int:
        """Output rows of all parts."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """The experts of one layer: gated MLPs of equal shape without biases."""

    num_experts: int
    hidden_size: int
    width: int
    """Numbers between an expert's two products."""
    activation: str
    """A key of `ops.ACTIVATIONS`."""

    def names(self, name: str, *parts: str) -> tuple[str, ...]:
        """The tensors of these parts (gate_proj, up_proj, down_proj) of every expert below the module `name`."""
        return tuple(f"{name}.{index}.{part}.weight" for index in range(self.num_experts) for part in parts)


class LinearLayer(Protocol):
    """A linear layer with its weights: what a scheme makes. Implementations are torch modules."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] → [T, out]."""

    def weight_slots(self, name: str) -> Iterable[WeightSlot]:
        """The checkpoint tensors that fill it; names are relative to the parent of the module called `name`."""


class ExpertsLayer(Protocol):
    """Experts with their weights: what a scheme makes. Implementations are torch modules."""

    def __call__(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x [T, E], and what `ops.route` chose for it, weights and ids [T, A] → [T, E]."""

    def weight_slots(self, name: str) -> Iterable[WeightSlot]:
        """Three matrices per expert; names are relative to the parent of the module called `name`."""

    def weight_alternatives(self, name: str) -> Iterable[WeightSlot]:
        """Two tensors of all experts, the form `transformers` 5 holds in memory."""


class TokenTable(Protocol):
    """A table [rows, size] that is looked up and, as the output head, multiplied with. Implementations are modules."""

    def lookup(self, ids: Tensor, *, scale: float = 1.0, offset: int = 0) -> Tensor:
        """scale · rows ids + offset, of ids [T] int64: [T, size]."""

    def project(self, hidden: Tensor) -> Tensor:
        """hidden [R, size] → [R, rows]."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether the table is what `tensor` [rows, size] would become in it."""

    def slot(self, name: str) -> WeightSlot:
        """The slot of the whole table, under this name."""


class QuantScheme(Protocol):
    """A weight format."""

    name: str

    def linear(self, spec: LinearSpec, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """A `LinearLayer` with unfilled weights; `dtype` is that of the activations."""

    def experts(self, spec: ExpertsSpec, *, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """An `ExpertsLayer` with unfilled weights; `dtype` is that of the activations."""

    def table(self, rows: int, size: int, *, dtype: torch.dtype, device: torch.device) -> TokenTable:
        """An unfilled table for tokens or positions."""
