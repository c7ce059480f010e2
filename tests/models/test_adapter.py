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
from quire.models.adapter import AdapterLM, build_adapter, plain_config
from quire.models.inspect import inspect_model
from quire.models.loader import build_model

SMALL = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
HEAD16 = {**SMALL, "head_dim": 16}
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "apertus": ("apertus", {**SMALL, "pad_token_id": 0}),
    "olmo2": ("olmo2", {**SMALL, "pad_token_id": 0, "rope_parameters": YARN}),
    "starcoder2: window": ("starcoder2", {**SMALL, "sliding_window": 24}),
    "cohere": ("cohere", {**SMALL, "logit_scale": 0.7, "pad_token_id": 0}),
    "cohere2: window": ("cohere2", {**HEAD16, "logit_scale": 1.0, "sliding_window": 24, "layer_types": TYPES,
                                    "pad_token_id": 0}),
    "granite": ("granite", {**SMALL, "logits_scaling": 2.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7,
                            "embedding_multiplier": 3.0, "pad_token_id": 0}),
    "phi": ("phi", {**SMALL, "num_key_value_heads": 4}),
    "glm4": ("glm4", {**HEAD16, "pad_token_id": 0}),
    "smollm3": ("smollm3", {**SMALL, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "arcee": ("arcee", HEAD16),
    "ernie4_5": ("ernie4_5", {**HEAD16, "pad_token_id": 0}),
    "helium": ("helium", {**HEAD16, "hidden_size": 64, "pad_token_id": 0}),
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
    ("phi", "rope_parameters.partial_rotary_factor", 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "field", "value"), ALTERATIONS)
def test_altering_one_field_of_an_adapted_family_shows(harness, few_prompts, variant, field, value):
    """S45"""
    model_type, config = VARIANTS[variant]
    path = harness.checkpoint(model_type, **config)
    assert not harness.is_equal(path, harness.model(path, **{field: value}), few_prompts)


@pytest.fixture
def context():
    return BuildContext(
        dtype=torch.float32, device=torch.device("cpu"), attention=select_backend("reference"), max_model_len=64
    )


def info_of(harness, variant, **changes):
    model_type, config = VARIANTS[variant]
    info = inspect_model(harness.checkpoint(model_type, **config))
    return dataclasses.replace(info, **changes)


def test_the_adapter_says_so_at_start(harness, context, caplog):
    """S45: a model that runs by the fallback is marked as such."""
    with caplog.at_level(logging.INFO, logger="quire.models.adapter"):
        build_model(info_of(harness, "olmo2"), context)
    assert "Olmo2ForCausalLM runs through the generic adapter" in caplog.text


def test_a_wrong_idea_of_the_cache_is_refused_before_weights_are_read(harness, context):
    """S45, S10: sizing and the built model must agree, or nothing starts."""
    info = info_of(harness, "olmo2")
    wrong = dataclasses.replace(info, kv_layers=info.kv_layers[:2])
    with pytest.raises(UnsupportedModelError, match="3 of its 2 layers"):
        build_model(wrong, context)


@pytest.mark.parametrize(("model_type", "reason"), [("stablelm", "not open"), ("nemotron", "hand their")])
def test_a_model_that_loses_the_step_on_the_way_is_refused_by_check_and_by_the_probe(
    harness, context, model_type, reason
):
    """S45, S27: what cannot be adapted is refused by name, first from the source, last by the probe."""
    path = harness.checkpoint(model_type, **{**SMALL, "hidden_size": 64})
    with pytest.raises(UnsupportedModelError, match=reason):
        inspect_model(path)
    config = harness.config(path)
    info = info_of(harness, "olmo2", config=config, architecture=config["architectures"][0])
    with pytest.raises(UnsupportedModelError, match="does not hand its arguments"):
        build_adapter(info, context)


def test_windows_that_live_in_a_mask_are_refused_by_the_probe(harness, context):
    """S42, S45: a window that never reaches the attention call must not be lost silently."""
    info = info_of(harness, "olmo2")
    config = info.config | {"sliding_window": 24}
    with pytest.raises(UnsupportedModelError, match="sliding windows live in the attention mask"):
        build_model(dataclasses.replace(info, config=config), context)


def test_what_transformers_cannot_build_is_an_error_of_ours(harness, context):
    """S27: one cause, named, instead of a traceback from the middle of another library."""
    info = info_of(harness, "olmo2")
    broken = dataclasses.replace(info, config=info.config | {"hidden_act": "no_such"})
    with pytest.raises(UnsupportedModelError, match="no_such"):
        build_model(broken, context)


def test_keys_that_make_transformers_load_code_are_dropped():
    """SEC-5"""
    kernels = ("_attn_implementation", "_attn_implementation_internal", "attn_implementation", "experts_implementation")
    config = {"hidden_size": 8, "auto_map": {"AutoModel": "x.Y"}, **dict.fromkeys(kernels, "org/kernel")}
    assert plain_config(config) == {"hidden_size": 8}


def test_code_in_the_directory_of_an_adapted_model_is_never_run(harness, context, tmp_path):
    """SEC-5: modeling code, auto_map and a canary beside an adapter checkpoint."""
    import json
    import shutil

    source = harness.checkpoint(VARIANTS["olmo2"][0], **VARIANTS["olmo2"][1])
    path = tmp_path / "model"
    shutil.copytree(source, path)
    canary = tmp_path / "canary"
    (path / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')\n")
    names = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    changed = harness.config(source) | {"auto_map": names, "trust_remote_code": True}
    (path / "config.json").write_text(json.dumps(changed))
    info = inspect_model(path)
    assert harness.model(path) is not None
    assert not canary.exists()
    assert any("auto_map is ignored" in note for note in info.notes)
    assert any("modeling_x.py is ignored" in note for note in info.notes)


def test_native_models_and_inspection_never_import_transformers(harness):
    """S86, SEC-5: transformers is imported by the adapter alone."""
    path = harness.checkpoint("llama", **SMALL)
    code = f"""
import sys, torch
from quire.models.inspect import inspect_model
assert "quire.models.adapter" not in sys.modules
info = inspect_model({str(path)!r})
from quire.models.loader import load_model
from quire.layers.context import BuildContext
from quire.attention import select_backend
load_model(info, BuildContext(dtype=torch.float32, device=torch.device("cpu"), max_model_len=32,
                              attention=select_backend("reference")))
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
