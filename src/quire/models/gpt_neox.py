"""GPT-NeoX and Pythia: LayerNorm, partial rotation, attention and MLP side by side, q k v interleaved by head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import nn

from quire.layers.blocks import ParallelBlock, SequentialBlock
from quire.layers.decoder import CausalLM
from quire.layers.linear import build, regroup_qkv
from quire.layers.mlp import plain_mlp
from quire.layers.norm import LayerNorm, Norm
from quire.models.readers_classic import NeoXConfig
from quire.quant.interface import LinearSpec, Part


class GPTNeoXForCausalLM(CausalLM[NeoXConfig]):
    """Parallel or sequential residual, as the configuration says."""

    renames: ClassVar[Mapping[str, str]] = {
        "model": "gpt_neox",
        "embed_tokens": "embed_in",
        "norm": "final_layer_norm",
        "lm_head": "embed_out",
        "self_attn": "attention",
        "qkv_proj": "query_key_value",
        "o_proj": "dense",
        "up_proj": "dense_h_to_4h",
        "down_proj": "dense_4h_to_h",
    }
    ignored_weights = (r".*\.rotary_emb\.inv_freq", r".*\.attention\.(bias|masked_bias)")
    weight_prefixes = (("lm_head.", "embed_out."), ("", "gpt_neox."))

    def layer(self, index: int) -> nn.Module:
        """Attention and MLP side by side, or one after the other."""
        block = ParallelBlock if self.config.parallel else SequentialBlock
        return block(self.attention(index), self.mlp(index), self.norm(), self.norm())

    def qkv(self, layer: int) -> nn.Module:
        """One tensor whose rows are q, k, v of head 0, then of head 1, and so on."""
        config = self.config
        reorder = partial(regroup_qkv, groups=config.num_heads, queries=1, head_dim=config.head_dim)
        parts = (Part("", 3 * config.num_heads * config.head_dim),)
        spec = LinearSpec(in_features=config.hidden_size, parts=parts, bias=config.qkv_bias, reorder=reorder)
        return build(self.context, spec)

    def mlp(self, layer: int) -> nn.Module:
        """A plain MLP."""
        return plain_mlp(self.context, self.config)

    def norm(self, size: int | None = None) -> Norm:
        """LayerNorm."""
        return LayerNorm(size or self.config.hidden_size, eps=self.config.norm_eps, context=self.context)
