"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM
from quire.layers.moe import MoE


class MixtralForCausalLM(CausalLM[DecoderConfig]):
    """LLaMA's layout with experts in place of the MLP."""

    renames: ClassVar[Mapping[str, str]] = {
        "mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2",
    }

    def mlp(self, layer: int) -> nn.Module:
        """The layer's experts."""
        config = self.config
        assert config.moe is not None, "the reader of this family always sets moe"
        return MoE(config.moe, config.hidden_size, activation=config.activation, context=self.context)
