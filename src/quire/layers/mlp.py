"""Feed-forward blocks: gated (LLaMA and after) and plain (GPT-2, NeoX, OPT, Falcon)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from quire import ops


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)); gate and up are one product."""

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module, *, activation: str) -> None:
        super().__init__()
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x [T, E] → [T, E]."""
        return cast(Tensor, self.down_proj(ops.gated_activation(self.gate_up_proj(x), self.activation)))


class MLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, up_proj: nn.Module, down_proj: nn.Module, *, activation: str) -> None:
        super().__init__()
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x [T, E] → [T, E]."""
        return cast(Tensor, self.down_proj(ops.activation(self.up_proj(x), self.activation)))
