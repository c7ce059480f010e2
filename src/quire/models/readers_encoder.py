"""config.json → typed configuration for encoders of the BERT family. Torch-free.

Defaults are those of the family's configuration class in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.layers.config import EncoderConfig
from quire.models.config import ConfigReader

_BUFFERS = r"(.*\.)?embeddings\.position_ids"
_PRETRAINING = (r"cls\..*", r"lm_head\..*", r"vocab_(transform|layer_norm|projector)\..*")
"""Heads that guess words and sentences; embeddings and classifiers do without."""
_POOLER = r"(.*\.)?pooler\..*"
_LABEL_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}
"""torch class that a cross-encoder's configuration names → ours."""


def read_bert(raw: Mapping[str, Any], *, classifies: bool = False) -> EncoderConfig:
    """BERT (Devlin et al., 2018)."""
    reader = ConfigReader(raw)
    return EncoderConfig(
        **_layers(reader),
        max_position=reader.positive("max_position_embeddings"),
        num_token_types=reader.default("type_vocab_size", 2),
        norm_eps=reader.default("layer_norm_eps", 1e-12),
        ignored_weights=(_BUFFERS, *_PRETRAINING, *(() if classifies else (_POOLER,))),
        **(_labels(reader) if classifies else {}),
    )


def read_roberta(raw: Mapping[str, Any], *, classifies: bool = False) -> EncoderConfig:
    """RoBERTa, XLM-R and CamemBERT (Liu et al., 2019): positions begin behind the padding token's row."""
    reader = ConfigReader(raw)
    offset = reader.default("pad_token_id", 1) + 1
    rows = reader.positive("max_position_embeddings")
    if not 0 <= offset < rows:
        raise reader.refuse("pad_token_id", f"ids from 0 to {rows - 2} (positions begin behind that row)")
    return EncoderConfig(
        **_layers(reader),
        max_position=rows - offset,
        position_offset=offset,
        num_token_types=reader.default("type_vocab_size", 2),
        norm_eps=reader.default("layer_norm_eps", 1e-12),
        ignored_weights=(_BUFFERS, *_PRETRAINING, _POOLER),
        **(_labels(reader) if classifies else {}),
    )


def read_distilbert(raw: Mapping[str, Any], *, classifies: bool = False) -> EncoderConfig:
    """DistilBERT (Sanh et al., 2019), whose keys have names of their own."""
    names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    reader = ConfigReader({**raw, **{new: raw[old] for new, old in names.items() if raw.get(old) is not None}})
    return EncoderConfig(
        **_layers(reader),
        max_position=reader.positive("max_position_embeddings"),
        norm_eps=1e-12,
        ignored_weights=(_BUFFERS, *_PRETRAINING),
        **(_labels(reader) if classifies else {}),
    )


def _layers(reader: ConfigReader) -> dict[str, Any]:
    """What all of them read alike."""
    reader.must_equal("is_decoder", False, "encoders attend both ways")
    reader.must_equal("add_cross_attention", False, "cross attention is not run")
    reader.must_equal("position_embedding_type", "absolute", "positions relative to each other are not run")
    width, heads = reader.positive("hidden_size"), reader.positive("num_attention_heads")
    if width % heads:
        raise reader.refuse("hidden_size", f"multiples of num_attention_heads ({heads})")
    return {
        "num_layers": reader.positive("num_hidden_layers"),
        "hidden_size": width,
        "num_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": reader.positive("intermediate_size"),
        "vocab_size": reader.positive("vocab_size"),
        "activation": reader.activation("hidden_act", "gelu"),
    }


def _labels(reader: ConfigReader) -> dict[str, Any]:
    """The labels' names in order, and what turns logits into what is shown."""
    named = reader.nullable("id2label", dict)
    count = reader.default("num_labels", 2) if named is None else len(named)
    found = {str(number): str(name) for number, name in (named or {}).items()} or {
        str(number): f"LABEL_{number}" for number in range(count)
    }
    if not found or set(found) != {str(number) for number in range(count)}:
        raise reader.refuse("id2label", "names for the labels 0, 1, 2, ... without gaps")
    labels = tuple(found[str(number)] for number in range(count))
    return {"labels": labels, "label_activation": _label_activation(reader, count)}


def _label_activation(reader: ConfigReader, count: int) -> str:
    """What a cross-encoder's configuration names; else sigmoid for one label or several at once, else softmax."""
    section = reader.section("sentence_transformers")
    key, source = "sbert_ce_default_activation_function", reader
    if section is not None and section.values.get("activation_fn") is not None:
        key, source = "activation_fn", section
    name = source.nullable(key, str)
    if name is not None:
        kind = name.rpartition(".")[2]
        if kind not in _LABEL_ACTIVATIONS:
            raise source.refuse(key, "torch's Identity or Sigmoid")
        return _LABEL_ACTIVATIONS[kind]
    problem = reader.nullable("problem_type", str)
    if problem == "regression":
        return "identity"
    return "sigmoid" if count == 1 or problem == "multi_label_classification" else "softmax"
