"""GPT-2: learned positions, and weights stored as [in, out]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from quire.attention.interface import AttentionSpec
from quire.layers.context import BuildContext
from quire.layers.decoder import CausalLM
from quire.layers.embedding import position_embedding
from quire.layers.linear import linear
from quire.layers.mlp import MLP
from quire.layers.norm import LayerNorm, Norm
from quire.models.readers_classic import GPT2Config


class GPT2LMHeadModel(CausalLM[GPT2Config]):
    """Pre-norm blocks over token plus position embeddings."""

    renames: ClassVar[Mapping[str, str]] = {
        "model": "transformer",
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers": "h",
        "norm": "ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn": "attn",
        "qkv_proj": "c_attn",
        "o_proj": "c_proj",
        "up_proj": "c_fc",
        "down_proj": "c_proj",
    }
    ignored_weights = (r".*\.attn\.(bias|masked_bias)",)
    weight_prefixes = (("", "transformer."),)

    def __init__(self, config: GPT2Config, context: BuildContext) -> None:
        super().__init__(config, context)
        self.model.embed_positions = position_embedding(config.max_position, config.hidden_size, context=context)

    def qkv(self, layer: int) -> nn.Module:
        """c_attn: q, k and v side by side."""
        return self.conv(self.config.hidden_size, 3 * self.config.hidden_size)

    def attention_out(self) -> nn.Module:
        """c_proj of attention."""
        return self.conv(self.config.hidden_size, self.config.hidden_size)

    def conv(self, in_features: int, out_features: int) -> nn.Module:
        """A linear layer stored as [in, out]."""
        return linear(self.context, in_features, out_features, bias=True, transposed=True)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Scaled down with depth where the configuration says so."""
        spec = super().attention_spec(layer)
        return dataclasses.replace(spec, scale=spec.scale / (layer + 1)) if self.config.scale_by_layer else spec

    def mlp(self, layer: int) -> nn.Module:
        """A plain MLP."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        return MLP(self.conv(width, inner), self.conv(inner, width), activation=self.config.activation)

    def norm(self, size: int | None = None) -> Norm:
        """LayerNorm."""
        return LayerNorm(size or self.config.hidden_size, eps=self.config.norm_eps, context=self.context)
