"""OPT: learned positions from row 2 on, norms before or (350M) after each block, embeddings that may be narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from quire.layers.blocks import PostNormBlock, SequentialBlock
from quire.layers.context import BuildContext
from quire.layers.decoder import CausalLM
from quire.layers.embedding import Embedding, position_embedding
from quire.layers.linear import linear
from quire.layers.mlp import plain_mlp
from quire.layers.norm import LayerNorm, Norm
from quire.models.readers_classic import OPTConfig

POSITION_OFFSET = 2
"""Rows of the position table that training reserved for padding."""


class OPTForCausalLM(CausalLM[OPTConfig]):
    """The layouts of 125M to 66B, and that of 350M."""

    renames: ClassVar[Mapping[str, str]] = {
        "model": "model.decoder",
        "input_layernorm": "self_attn_layer_norm",
        "post_attention_layernorm": "final_layer_norm",
        "norm": "final_layer_norm",
        "o_proj": "out_proj",
        "mlp": "",
        "up_proj": "fc1",
        "down_proj": "fc2",
    }
    ignored_weights = ()
    weight_prefixes = (("decoder.", "model.decoder."), ("", "model.decoder."))

    def __init__(self, config: OPTConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        width, narrow = config.hidden_size, config.embedding_size
        self.model.embed_positions = position_embedding(
            config.max_position, width, context=context, offset=POSITION_OFFSET
        )
        if narrow != width:
            self.model.project_in = linear(context, narrow, width)
            self.model.project_out = linear(context, width, narrow)

    def embedding(self) -> Embedding:
        """The token table, as narrow as it is stored."""
        return Embedding(self.config.vocab_size, self.config.embedding_size, context=self.context)

    def layer(self, index: int) -> nn.Module:
        """Norms before each block, or after."""
        block = SequentialBlock if self.config.norm_before else PostNormBlock
        return block(self.attention(index), self.mlp(index), self.norm(), self.norm())

    def mlp(self, layer: int) -> nn.Module:
        """A plain MLP."""
        return plain_mlp(self.context, self.config)

    def norm(self, size: int | None = None) -> Norm:
        """LayerNorm; some checkpoints have no weights for it."""
        config = self.config
        width = size or config.hidden_size
        return LayerNorm(width, eps=config.norm_eps, context=self.context, affine=config.norm_affine)

    def final_norm(self) -> Norm | None:
        """None where the last block ends with a norm."""
        return self.norm() if self.config.final_norm else None

    def output_size(self) -> int:
        """Narrow again, for the head."""
        return self.config.embedding_size
