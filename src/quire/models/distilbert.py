"""DistilBERT: BERT's layers under other names, without token types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from quire import ops
from quire.layers.encoder import EncoderModel


class DistilBertModel(EncoderModel):
    """Its classifier's head has a ReLU."""

    renames: ClassVar[Mapping[str, str]] = {
        "norm": "LayerNorm",
        "encoder": "transformer",
        "layers": "layer",
        "self_attn": "attention",
        "q_proj": "q_lin",
        "k_proj": "k_lin",
        "v_proj": "v_lin",
        "o_proj": "out_lin",
        "input_layernorm": "sa_layer_norm",
        "mlp": "ffn",
        "up_proj": "lin1",
        "down_proj": "lin2",
        "post_attention_layernorm": "output_layer_norm",
        "head": "",
        "dense": "pre_classifier",
        "out_proj": "classifier",
    }
    weight_prefixes = (("distilbert.", ""),)

    def head_activation(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return ops.activation(x, "relu")
