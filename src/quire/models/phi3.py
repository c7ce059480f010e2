"""Phi-3 and Phi-4-mini: checkpoints store q, k, v and gate, up fused in the order this package uses."""

from __future__ import annotations

from torch import nn

from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM
from quire.layers.linear import linear
from quire.layers.mlp import GatedMLP


class Phi3ForCausalLM(CausalLM[DecoderConfig]):
    """LLaMA's layout, stored fused."""

    def qkv(self, layer: int) -> nn.Module:
        """qkv_proj as one checkpoint tensor."""
        config = self.config
        rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        return linear(self.context, config.hidden_size, rows)

    def mlp(self, layer: int) -> nn.Module:
        """gate_up_proj as one checkpoint tensor."""
        config = self.config
        gate_up = linear(self.context, config.hidden_size, 2 * config.intermediate_size)
        down = linear(self.context, config.intermediate_size, config.hidden_size)
        return GatedMLP(gate_up, down, activation=config.activation)
