"""A typed reader of config.json, and the parts every family's reader shares: positions, windows, activations.

It knows the spellings of both config generations of Hugging Face checkpoints (`rope_theta` and `rope_scaling`, or
`rope_parameters`). It is torch-free and never looks at weights. What it cannot honour it refuses by key and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from quire.base.errors import UnsupportedModelError
from quire.layers.config import RopeConfig

T = TypeVar("T")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
}
"""config.json's name of an activation → the op table's."""

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class ConfigReader:
    """Typed access to one config.json; every failure is an UnsupportedModelError that names the key."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def refuse(self, key: str, allowed: str) -> UnsupportedModelError:
        """The error for a key whose value quire does not run; the caller raises it."""
        return UnsupportedModelError(f"{self.where}: {key} is {self.values.get(key)!r}; supported: {allowed}")

    def required(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there."""
        if self.values.get(key) is None:
            raise UnsupportedModelError(f"{self.where}: {key} is missing; it must be {_article(kind)}")
        return self._typed(key, kind)

    def default(self, key: str, value: T) -> T:
        """The value of a key, or `value` when it is absent or null; the type is that of `value`."""
        return value if self.values.get(key) is None else self._typed(key, type(value))

    def nullable(self, key: str, kind: type[T], missing: T | None = None) -> T | None:
        """The value of a key that may be null; `missing` when the key is absent."""
        if key not in self.values:
            return missing
        return None if self.values[key] is None else self._typed(key, kind)

    def must_equal(self, key: str, value: object, why: str) -> None:
        """Refuse a key that is set to anything but `value`; absent and null are fine."""
        found = self.values.get(key)
        if found is not None and found != value:
            raise UnsupportedModelError(f"{self.where}: {key} is {found!r}; only {value!r} is supported: {why}")

    def positive(self, key: str) -> int:
        """A required whole number of at least 1."""
        value = self.required(key, int)
        if value < 1:
            raise self.refuse(key, "whole numbers from 1")
        return value

    def activation(self, key: str, default: str) -> str:
        """The op table's name of the activation under `key`."""
        name = self.default(key, default)
        if name not in ACTIVATIONS:
            raise self.refuse(key, ", ".join(ACTIVATIONS))
        return ACTIVATIONS[name]

    def section(self, key: str) -> ConfigReader | None:
        """A nested object as its own reader; None when absent, null or empty."""
        value = self.nullable(key, dict)
        return ConfigReader(value, f"{self.where}: {key}") if value else None

    def numbers(self, key: str) -> tuple[float, ...]:
        """A required list of numbers."""
        values = self.required(key, list)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise self.refuse(key, "a list of numbers")
        return tuple(float(v) for v in values)

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self.values[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
            raise self.refuse(key, _article(kind))
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refuse(key, "finite numbers")
        return value


def _article(kind: type) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list"}
    return names.get(kind, "an object")


def read_heads(reader: ConfigReader, *, default_kv: int | None = None) -> tuple[int, int, int]:
    """Query heads, kv heads and head size (`head_dim`, or the width divided by the heads)."""
    hidden, heads = reader.positive("hidden_size"), reader.positive("num_attention_heads")
    kv_heads = reader.nullable("num_key_value_heads", int, default_kv) or heads
    head_dim = reader.nullable("head_dim", int)
    if head_dim is None:
        if hidden % heads:
            raise reader.refuse("hidden_size", f"multiples of num_attention_heads ({heads})")
        head_dim = hidden // heads
    if heads % kv_heads:
        raise reader.refuse("num_key_value_heads", f"divisors of num_attention_heads ({heads})")
    return heads, kv_heads, head_dim


def read_windows(reader: ConfigReader, *, default: int | None) -> tuple[int | None, ...]:
    """One window for all layers (Mistral and its kin)."""
    window = reader.nullable("sliding_window", int, default)
    if window is not None and window < 1:
        raise reader.refuse("sliding_window", "null or whole numbers from 1")
    return (window,) * reader.positive("num_hidden_layers")


def read_layer_types(reader: ConfigReader, computed: Sequence[str]) -> tuple[str, ...]:
    """`layer_types`, or `computed` when config.json does not list them; one entry per layer."""
    types = reader.nullable("layer_types", list)
    types = list(computed) if types is None else types
    if len(types) < len(computed) or any(t not in ("full_attention", "sliding_attention") for t in types):
        raise reader.refuse("layer_types", f"full_attention or sliding_attention for each of {len(computed)} layers")
    return tuple(types[: len(computed)])


def windows_of(reader: ConfigReader, types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """`window` for the sliding layers, None for the others."""
    if "sliding_attention" in types and (window is None or window < 1):
        raise reader.refuse("sliding_window", "whole numbers from 1 where layers slide")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def read_rope(reader: ConfigReader, head_dim: int, *, theta: float = 10000.0, max_position: int) -> RopeConfig:
    """The rotary scheme of config.json, in either generation's spelling."""
    section = reader.section("rope_scaling") or reader.section("rope_parameters")
    values = dict(section.values) if section else {}
    for key, fallback in (("rope_theta", theta), ("partial_rotary_factor", 1.0)):
        values.setdefault(key, reader.default(key, fallback))
    if (original := reader.nullable("original_max_position_embeddings", int)) is not None:
        values["original_max_position_embeddings"] = original
    where = section.where if section else reader.where
    return rope_from(ConfigReader(values, where), head_dim, max_position=max_position)


def rope_from(reader: ConfigReader, head_dim: int, *, max_position: int) -> RopeConfig:
    """A rotary scheme from one object of rope parameters (`rope_type`, `rope_theta`, `factor`, ...)."""
    kind_key = "rope_type" if reader.values.get("rope_type") is not None else "type"
    kind = reader.default(kind_key, "default")
    if kind not in ROPE_TYPES:
        raise reader.refuse(kind_key, ", ".join(ROPE_TYPES))
    if reader.values.get("mrope_section") is not None:
        raise reader.refuse("mrope_section", "null (text positions only)")
    rotary_dim = int(head_dim * reader.default("partial_rotary_factor", 1.0))
    if rotary_dim < 2 or rotary_dim > head_dim or rotary_dim % 2:
        raise reader.refuse("partial_rotary_factor", f"an even number of the {head_dim} numbers of a head")
    shared: dict[str, Any] = {
        "rope_type": kind,
        "theta": reader.default("rope_theta", 10000.0),
        "rotary_dim": rotary_dim,
        "max_position": max_position,
    }
    return RopeConfig(**shared, **_SCALINGS[kind](reader, rotary_dim, max_position))


def _no_scaling(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    return {}


def _linear(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    return {"factor": _factor(reader)}


def _dynamic(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    if rotary_dim < 4:
        raise reader.refuse("rope_type", "dynamic where at least 4 numbers of a head are rotated")
    return {"factor": _factor(reader)}


def _factor(reader: ConfigReader, default: float | None = None) -> float:
    factor = reader.required("factor", float) if default is None else reader.default("factor", default)
    if factor <= 0:
        raise reader.refuse("factor", "positive numbers")
    return factor


def _original_length(reader: ConfigReader, max_position: int) -> int:
    original = reader.default("original_max_position_embeddings", max_position)
    if original < 2:
        raise reader.refuse("original_max_position_embeddings", "whole numbers from 2")
    return original


def _llama3(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    low, high = reader.required("low_freq_factor", float), reader.required("high_freq_factor", float)
    if high == low:
        raise reader.refuse("high_freq_factor", "numbers other than low_freq_factor")
    return {
        "factor": _factor(reader),
        "original_max_position": _original_length(reader, max_position),
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _yarn(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    original = _original_length(reader, max_position)
    factor = _factor(reader, max_position / original)
    attention = reader.nullable("attention_factor", float)
    if attention is None:
        mscale, all_dim = reader.default("mscale", 0.0), reader.default("mscale_all_dim", 0.0)
        both = mscale != 0.0 and all_dim != 0.0
        attention = _mscale(factor, mscale) / _mscale(factor, all_dim) if both else _mscale(factor, 1.0)
    return {
        "factor": factor,
        "original_max_position": original,
        "attention_factor": attention,
        "beta_fast": reader.default("beta_fast", 32.0) or 32.0,
        "beta_slow": reader.default("beta_slow", 1.0) or 1.0,
        "truncate": reader.default("truncate", True),
    }


def _mscale(factor: float, mscale: float) -> float:
    """Peng et al., YaRN, 2023, equation 22."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(reader: ConfigReader, rotary_dim: int, max_position: int) -> dict[str, Any]:
    original = _original_length(reader, max_position)
    factor = _factor(reader, max_position / original)
    attention = reader.nullable("attention_factor", float)
    if attention is None:
        attention = 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
    factors = {key: reader.numbers(key) for key in ("short_factor", "long_factor")}
    for key, numbers in factors.items():
        if len(numbers) != rotary_dim // 2:
            raise reader.refuse(key, f"lists of {rotary_dim // 2} numbers (half the rotated part of a head)")
    return {"factor": factor, "original_max_position": original, "attention_factor": attention, **factors}


_SCALINGS = {
    "default": _no_scaling,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def promised_context(rope: RopeConfig, max_position: int) -> int:
    """Longest context: yarn's is factor x original length where max_position_embeddings still states the original."""
    scaled = int(rope.factor * rope.original_max_position) if rope.rope_type == "yarn" else 0
    return max(max_position, scaled)
