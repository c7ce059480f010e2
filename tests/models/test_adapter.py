"""Families without a native file compute what transformers computes, through the generic adapter."""

import dataclasses
import logging
import subprocess
import sys

import pytest
import torch

from quire.attention import select_backend
from quire.base.errors import UnsupportedModelError
from quire.layers.context import BuildContext
from quire.models.adapter import AdapterLM, plain_config
from quire.models.inspect import inspect_model
from quire.models.loader import build_model

SMALL = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
HEAD16 = {**SMALL, "head_dim": 16}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_parameters": {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}}  # fmt: skip
VARIANTS = {
    "stablelm": ("stablelm", {**SMALL, "qk_layernorm": True}),
    "olmo2": ("olmo2", {**SMALL, "pad_token_id": 0, **YARN}),
    "starcoder2: window": ("starcoder2", {**SMALL, "sliding_window": 24}),
    "cohere": ("cohere", {**SMALL, "logit_scale": 0.7, "pad_token_id": 0}),
    "cohere2: window": ("cohere2", {**HEAD16, "sliding_window": 24, "layer_types": TYPES, "pad_token_id": 0}),
    "granite": ("granite", {**SMALL, "logits_scaling": 2.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7,
                            "embedding_multiplier": 3.0, "pad_token_id": 0}),
    "phi": ("phi", {**SMALL, "num_key_value_heads": 4}),
    "glm4": ("glm4", {**HEAD16, "pad_token_id": 0}),
    "smollm3": ("smollm3", {**SMALL, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "nemotron": ("nemotron", HEAD16),
    "ernie4_5": ("ernie4_5", {**HEAD16, "pad_token_id": 0}),
    "helium": ("helium", {**HEAD16, "pad_token_id": 0}),
    "seed_oss": ("seed_oss", {**HEAD16, "pad_token_id": 0}),
    "exaone4: window": ("exaone4", {**SMALL, "sliding_window": 24, "layer_types": TYPES, "pad_token_id": 0}),
    "olmoe": ("olmoe", {**SMALL, "num_experts": 6, "num_experts_per_tok": 2, "pad_token_id": 0}),
}  # fmt: skip
FAST = ("olmo2", "starcoder2: window", "cohere2: window", "granite", "olmoe")


@pytest.mark.parametrize("variant", FAST)
def test_an_adapted_family_agrees_with_transformers_on_a_few_prompts(harness, few_prompts, variant):
    """S45"""
    model_type, config = VARIANTS[variant]
    path = harness.checkpoint(model_type, **config)
    model = harness.model(path)
    assert isinstance(model, AdapterLM)
    harness.compare(path, harness.ours(model, few_prompts, num_new=16, page_size=8), few_prompts)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapted_family_agrees_with_transformers_on_twenty_prompts(harness, all_prompts, variant, page_size):
    """S45, REL-16: 20 prompts of 1 to 200 tokens, 64 greedy steps each, every position."""
    model_type, config = VARIANTS[variant]
    path = harness.checkpoint(model_type, **config)
    model = harness.model(path)
    assert isinstance(model, AdapterLM)
    harness.compare(path, harness.ours(model, all_prompts, page_size=page_size), all_prompts)


ALTERATIONS = [
    ("starcoder2: window", "sliding_window", 25),
    ("cohere2: window", "sliding_window", 32),
    ("cohere", "logit_scale", 0.8),
    ("granite", "attention_multiplier", 0.5),
    ("granite", "logits_scaling", 3.0),
    ("olmo2", "rope_parameters.factor", 2.0),
    ("olmoe", "num_experts_per_tok", 3),
    ("phi", "partial_rotary_factor", 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "field", "value"), ALTERATIONS)
def test_altering_one_field_of_an_adapted_family_shows(harness, few_prompts, variant, field, value):
    """S45"""
    model_type, config = VARIANTS[variant]
    path = harness.checkpoint(model_type, **config)
    assert not harness.is_equal(path, harness.model(path, **{field: value}), few_prompts)
