"""A build context and a tiny configuration for tests of layers."""

from __future__ import annotations

import pytest
import torch

from quire.attention import select_backend
from quire.layers.config import DecoderConfig, RopeConfig
from quire.layers.context import BuildContext


@pytest.fixture
def make_context():
    """A context on the CPU; keyword arguments replace fields."""

    def make(**changes):
        fields = {
            "dtype": torch.float32,
            "device": torch.device("cpu"),
            "attention": select_backend("reference"),
            "max_model_len": 64,
        }
        return BuildContext(**{**fields, **changes})

    return make


@pytest.fixture
def context(make_context):
    """The plain context."""
    return make_context()


@pytest.fixture
def make_config():
    """A two-layer LLaMA; keyword arguments replace fields."""

    def make(**changes):
        rope = RopeConfig(rope_type="default", theta=10000.0, rotary_dim=8, max_position=64)
        fields = {
            "num_layers": 2,
            "hidden_size": 16,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 8,
            "intermediate_size": 24,
            "vocab_size": 31,
            "max_position": 64,
            "activation": "silu",
            "norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_scale": 8**-0.5,
            "ropes": (rope, rope),
            "windows": (None, None),
        }
        return DecoderConfig(**{**fields, **changes})

    return make
