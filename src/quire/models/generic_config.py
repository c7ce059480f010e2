"""The few numbers that sizing needs from the config.json of a model without a native reader. Torch-free.

Configuration classes spell these differently; the alternatives are tried in order. The adapter's probe compares the
result with what the built model really does, so a wrong guess here ends in an error, never in a wrong cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.base.errors import UnsupportedModelError
from quire.models.info import KVLayerSpec
from quire.models.refusals import rope_words

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
_WIDTH = ("hidden_size", "n_embd", "d_model", "embed_dim")
_HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericDecoder:
    """What sizing needs to know of a decoder."""

    kv_layers: tuple[KVLayerSpec, ...]
    vocab_rows: int
    max_position: int
    rope: str
    hidden_size: int | None


def read_generic(config: Mapping[str, Any]) -> GenericDecoder:
    """Read the numbers under whichever of the usual names; raises UnsupportedModelError naming the missing key."""
    layers, heads = _number(config, _LAYERS), _number(config, _HEADS)
    kv_heads = _optional(config, _KV_HEADS) or (1 if config.get("multi_query") is True else heads)
    head_dim = _optional(config, _HEAD_DIM) or _number(config, _WIDTH) // heads
    if head_dim < 1 or heads % kv_heads:
        raise UnsupportedModelError(
            f"config.json: {heads} query heads, {kv_heads} kv heads and head size {head_dim} do not fit together"
        )
    return GenericDecoder(
        kv_layers=(KVLayerSpec(kv_heads, head_dim),) * layers,
        vocab_rows=_number(config, ("vocab_size",)),
        max_position=max(_number(config, _POSITIONS), _yarn_length(config)),
        rope=rope_words(config),
        hidden_size=_optional(config, _WIDTH),
    )


def _yarn_length(config: Mapping[str, Any]) -> int:
    """yarn's length is factor x original where max_position_embeddings still states the original."""
    section = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(section, Mapping) or "yarn" not in (section.get("rope_type"), section.get("type")):
        return 0
    factor, original = section.get("factor"), section.get("original_max_position_embeddings")
    return int(factor * original) if isinstance(factor, int | float) and isinstance(original, int) else 0


def _optional(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise UnsupportedModelError(f"config.json: {name} is {str(value)[:100]}; supported: whole numbers from 1")
        return value
    return None


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = _optional(config, names)
    if value is None:
        raise UnsupportedModelError(f"config.json: {names[0]} is missing; it must be a whole number")
    return value
