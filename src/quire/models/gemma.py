"""Gemma 2 and 3: norms around each block with a factor of 1 + weight, embeddings scaled by sqrt(width)."""

from __future__ import annotations

import math

from torch import nn

from quire.layers.attention import Attention
from quire.layers.blocks import SandwichBlock
from quire.layers.decoder import CausalLM
from quire.layers.embedding import Embedding
from quire.layers.norm import Norm, RMSNorm
from quire.models.readers import GemmaConfig


class Gemma2ForCausalLM(CausalLM[GemmaConfig]):
    """Soft caps and alternating windows come with the configuration."""

    def embedding(self) -> Embedding:
        """The token table, times sqrt(width) in the model's dtype."""
        config = self.config
        return Embedding(
            config.vocab_size, config.hidden_size, context=self.context, scale=math.sqrt(config.hidden_size)
        )

    def layer(self, index: int) -> nn.Module:
        """A layer with four norms."""
        return SandwichBlock(
            self.attention(index), self.mlp(index), (self.norm(), self.norm(), self.norm(), self.norm())
        )

    def norm(self) -> Norm:
        """A norm over the model's width."""
        return self.norm_over(self.config.hidden_size)

    def norm_over(self, size: int) -> RMSNorm:
        """Gemma's norm."""
        return RMSNorm(size, eps=self.config.norm_eps, context=self.context, plus_one=True)


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """The text model of Gemma 3: norms on q and k, no soft caps as shipped."""

    weight_prefixes = (
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("", "model."),
    )

    def attention(self, layer: int) -> Attention:
        """Attention that normalises q and k before rotating them."""
        size = self.config.head_dim
        return Attention(
            qkv_proj=self.qkv(layer), o_proj=self.attention_out(), spec=self.attention_spec(layer),
            backend=self.context.attention, q_norm=self.norm_over(size), k_norm=self.norm_over(size),
        )
