"""Qwen3, dense and mixture of experts: RMSNorm on every head of q and k."""

from __future__ import annotations

from torch import nn

from quire.layers.attention import Attention
from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM
from quire.layers.moe import MoE
from quire.layers.norm import RMSNorm


class Qwen3ForCausalLM(CausalLM[DecoderConfig]):
    """LLaMA's layout with a norm per head."""

    def attention(self, layer: int) -> Attention:
        """Attention that normalises q and k before rotating them."""
        config = self.config
        q_norm, k_norm = (RMSNorm(config.head_dim, eps=config.norm_eps, context=self.context) for _ in range(2))
        return Attention(
            qkv_proj=self.qkv(layer), o_proj=self.attention_out(), spec=self.attention_spec(layer),
            backend=self.context.attention, q_norm=q_norm, k_norm=k_norm,
        )


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Experts in the layers that `MoeConfig.layers` names, a plain MLP in the others."""

    def mlp(self, layer: int) -> nn.Module:
        """Experts or a gated MLP."""
        config = self.config
        if config.moe is None or layer not in config.moe.layers:
            return super().mlp(layer)
        return MoE(config.moe, config.hidden_size, activation=config.activation, context=self.context)
