"""Gemma 2 and 3: norms around each block with a factor of 1 + weight, embeddings scaled by sqrt(width).

What the two differ in (soft caps, norms on heads, a rope per kind of layer) comes with the configuration.
"""

from __future__ import annotations

import math

from torch import nn

from quire.layers.blocks import SandwichBlock
from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM
from quire.layers.embedding import Embedding
from quire.layers.norm import Norm, RMSNorm


class GemmaForCausalLM(CausalLM[DecoderConfig]):
    """Text models; checkpoints of composite ones put a prefix before the names."""

    weight_prefixes = (
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("", "model."),
    )

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

    def norm(self, size: int | None = None) -> Norm:
        """Gemma's norm."""
        width = size or self.config.hidden_size
        return RMSNorm(width, eps=self.config.norm_eps, context=self.context, plus_one=True)
