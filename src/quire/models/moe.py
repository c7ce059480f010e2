"""Qwen3-MoE and Mixtral: experts in place of the MLP, in some layers or in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM
from quire.layers.moe import MoE


class MoeForCausalLM(CausalLM[DecoderConfig]):
    """LLaMA's layout with experts in the layers that `MoeConfig.layers` names."""

    def mlp(self, layer: int) -> nn.Module:
        """Experts or a gated MLP."""
        config = self.config
        if config.moe is None or layer not in config.moe.layers:
            return super().mlp(layer)
        return MoE(config.moe, config.hidden_size, activation=config.activation, context=self.context)


class MixtralForCausalLM(MoeForCausalLM):
    """Mixtral's names of the experts' parts."""

    renames: ClassVar[Mapping[str, str]] = {
        "mlp": "block_sparse_moe",
        "gate_proj": "w1",
        "up_proj": "w3",
        "down_proj": "w2",
    }
