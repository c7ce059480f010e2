"""BERT and RoBERTa (with XLM-R and CamemBERT): one layout; they differ in positions, prefixes and classifier heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quire.layers.encoder import EncoderModel

_LAYOUT = {
    "norm": "LayerNorm",
    "layers": "layer",
    "self_attn": "attention",
    "q_proj": "self.query",
    "k_proj": "self.key",
    "v_proj": "self.value",
    "o_proj": "output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp": "",
    "up_proj": "intermediate.dense",
    "down_proj": "output.dense",
    "post_attention_layernorm": "output.LayerNorm",
}


class BertModel(EncoderModel):
    """Its classifier goes through the pooler that next-sentence prediction trained."""

    renames: ClassVar[Mapping[str, str]] = _LAYOUT | {"head": "", "dense": "pooler.dense", "out_proj": "classifier"}
    weight_prefixes = (("bert.", ""),)


class RobertaModel(EncoderModel):
    """Its classifier is a head of its own."""

    renames: ClassVar[Mapping[str, str]] = _LAYOUT | {"head": "classifier"}
    weight_prefixes = (("roberta.", ""),)
