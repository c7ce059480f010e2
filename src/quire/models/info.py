"""What is known of a checkpoint before a byte of its weights is read. Torch-free: `quire check` and sizing use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from quire.base.pooling import PoolingModel
from quire.layers.config import KVLayerSpec as KVLayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A supported checkpoint, described by its configuration files and the headers of its weight files."""

    path: str
    architecture: str
    """The class named in config.json's `architectures`."""
    family: str
    """Name in the compatibility table."""
    implementation: Literal["native", "adapter"]
    config: dict[str, Any]
    """config.json (its text part, for composite checkpoints)."""
    kv_layers: tuple[KVLayerSpec, ...]
    max_position: int
    """Longest context the configuration promises, rope scaling included."""
    vocab_rows: int
    """Rows of the embedding: valid token ids are 0 to vocab_rows - 1."""
    stored_dtype: str
    """Most common dtype of the stored weights: float32, bfloat16, float16."""
    weight_files: tuple[str, ...]
    num_parameters: int
    """Numbers stored in the weight files (tied tensors once)."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the stored tensors that a native model loads, by name."""
    eos_token_ids: tuple[int, ...] = ()
    """From generation_config.json (which may list several), else config.json."""
    default_sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling fields of generation_config.json under `SamplingParams` names."""
    pooling: PoolingModel | None = None
    """What the model makes of a prompt besides text; None where it only generates."""
    is_encoder: bool = False
    """Whether every token attends to all others, so that a prompt is computed at once and nothing is generated."""
    rope: str = "none"
    """Position scheme in words, for reports: default, llama3 x8, yarn x4, alibi, learned, ..."""
    notes: tuple[str, ...] = ()
    """What a report should mention, such as ignored keys."""

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of KV cache one token needs over all layers (S10: 2 x layers x kv heads x head size x bytes, and scales
        where a number has one byte)."""
        return sum(layer.bytes_per_token(itemsize) for layer in self.kv_layers)
