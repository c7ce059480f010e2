"""Falcon: LayerNorm, multi-query or grouped attention beside the MLP, and the sequential layout with ALiBi (RW)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial

from torch import nn

from quire.attention.interface import AttentionSpec
from quire.layers.blocks import ParallelBlock, SequentialBlock, SharedNormBlock
from quire.layers.decoder import CausalLM
from quire.layers.linear import build, regroup_qkv
from quire.layers.mlp import plain_mlp
from quire.layers.norm import LayerNorm, Norm
from quire.models.readers_classic import FalconConfig
from quire.quant.interface import LinearSpec, Part


class FalconForCausalLM(CausalLM[FalconConfig]):
    """The three layouts that `FalconConfig` tells apart."""

    ignored_weights = (r".*\.(inv_freq|rotary_emb\.inv_freq)",)
    weight_prefixes = (("", "transformer."),)

    def checkpoint_names(self) -> Mapping[str, str]:
        """The norms of a block have other names where there are two of them."""
        names = {
            "model": "transformer",
            "embed_tokens": "word_embeddings",
            "layers": "h",
            "norm": "ln_f",
            "self_attn": "self_attention",
            "qkv_proj": "query_key_value",
            "o_proj": "dense",
            "up_proj": "dense_h_to_4h",
            "down_proj": "dense_4h_to_h",
        }
        two = {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
        return names | two if self.config.num_norms == 2 else names

    def layer(self, index: int) -> nn.Module:
        """Attention and MLP side by side with one norm or two, or one after the other."""
        attention, mlp = self.attention(index), self.mlp(index)
        if self.config.parallel and self.config.num_norms == 1:
            return SharedNormBlock(attention, mlp, self.norm())
        block = ParallelBlock if self.config.parallel else SequentialBlock
        return block(attention, mlp, self.norm(), self.norm())

    def qkv(self, layer: int) -> nn.Module:
        """One tensor; the 40B and the multi-head layouts interleave it by kv head."""
        config = self.config
        one_group = config.num_kv_heads == 1
        reorder = (
            None
            if one_group
            else partial(
                regroup_qkv,
                groups=config.num_kv_heads,
                queries=config.num_heads // config.num_kv_heads,
                head_dim=config.head_dim,
            )
        )
        rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        spec = LinearSpec(
            in_features=config.hidden_size, parts=(Part("", rows),), bias=config.qkv_bias, reorder=reorder
        )
        return build(self.context, spec)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """With ALiBi, the slopes; Falcon scales them together with q·k, and rounds as it did in training."""
        spec = super().attention_spec(layer)
        if not self.config.alibi:
            return spec
        return dataclasses.replace(spec, alibi_slopes=alibi_slopes(self.config.num_heads), alibi_before_scale=True)

    def mlp(self, layer: int) -> nn.Module:
        """A plain MLP."""
        return plain_mlp(self.context, self.config)

    def norm(self, size: int | None = None) -> Norm:
        """LayerNorm."""
        return LayerNorm(size or self.config.hidden_size, eps=self.config.norm_eps, context=self.context)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Slope per head: a geometric series; heads beyond a power of two take terms between its terms."""
    power = 2 ** math.floor(math.log2(num_heads))
    return tuple(_series(power) + _series(2 * power)[: 2 * (num_heads - power) : 2])


def _series(count: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... (Press et al., 2021)."""
    return [2.0 ** (-8.0 * (index + 1) / count) for index in range(count)]
