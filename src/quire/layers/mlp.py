"""Feed-forward blocks: gated (LLaMA and after) and plain (GPT-2, NeoX, OPT, Falcon)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from quire import ops
from quire.layers.config import DecoderConfig
from quire.layers.context import BuildContext
from quire.layers.linear import linear


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


def plain_mlp(context: BuildContext, config: DecoderConfig) -> MLP:
    """The plain block in the configuration's sizes."""
    up = linear(context, config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
    down = linear(context, config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
    return MLP(up, down, activation=config.activation)
