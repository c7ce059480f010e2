"""Reading config.json: both generations' spellings, defaults, and refusals that name key and value."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quire.base.errors import UnsupportedModelError
from quire.models.config import ConfigReader
from quire.models.families import FAMILIES

BASE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
NEOX = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
OPT = {**NEOX, "ffn_dim": 96}
GPT2 = {"vocab_size": 97, "n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}
SMALLEST = {
    "LlamaForCausalLM": BASE,
    "MistralForCausalLM": BASE,
    "Qwen2ForCausalLM": BASE,
    "Qwen3ForCausalLM": BASE,
    "Phi3ForCausalLM": BASE,
    "Gemma2ForCausalLM": BASE,
    "Gemma3ForCausalLM": BASE,
    "MixtralForCausalLM": BASE,
    "Qwen3MoeForCausalLM": BASE,
    "FalconForCausalLM": NEOX,
    "GPTNeoXForCausalLM": NEOX,
    "GPT2LMHeadModel": GPT2,
    "OPTForCausalLM": OPT,
}


def read(architecture, **changes):
    return FAMILIES[architecture].read({**SMALLEST[architecture], **changes})


@pytest.mark.parametrize("architecture", SMALLEST)
def test_the_least_a_checkpoint_must_say_is_enough(architecture):
    config = read(architecture)
    assert len(config.kv_layers) == len(config.ropes) == len(config.windows) == config.num_layers
    assert config.rope in ("default", "learned")


def test_every_built_in_family_is_covered_here():
    built_in = {name for name, entry in FAMILIES.items() if entry.module.startswith("quire.models.")}
    assert built_in - set(SMALLEST) == {"Gemma3ForConditionalGeneration"}  # a composite: read through its text part


def test_readers_do_not_load_torch():
    code = "import sys, quire.models.families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("architecture", SMALLEST)
@pytest.mark.parametrize("wrong", ["many", 0, -3, True, 2.5])
def test_a_count_that_is_no_count_is_refused_by_name(architecture, wrong):
    key = "n_layer" if architecture == "GPT2LMHeadModel" else "num_hidden_layers"
    with pytest.raises(UnsupportedModelError, match=key):
        read(architecture, **{key: wrong})


@pytest.mark.parametrize("architecture", SMALLEST)
def test_an_unknown_activation_is_refused_by_name(architecture):
    key = {
        "Gemma2ForCausalLM": "hidden_activation",
        "Gemma3ForCausalLM": "hidden_activation",
        "FalconForCausalLM": "activation",
        "GPT2LMHeadModel": "activation_function",
        "OPTForCausalLM": "activation_function",
    }.get(architecture, "hidden_act")
    with pytest.raises(UnsupportedModelError, match=f"{key} is 'mish'; supported: silu"):
        read(architecture, **{key: "mish"})


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        {"rope_scaling": {"rope_type": "spiral"}},
        {"rope_scaling": {"type": "spiral"}},
    ],
)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "GPTNeoXForCausalLM"])
def test_an_unknown_rope_type_is_refused_by_name(architecture, spelling):
    with pytest.raises(UnsupportedModelError, match="type is 'spiral'; supported: default, linear"):
        read(architecture, **spelling)


@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"rope_type": "linear", "factor": 2},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False, "beta_fast": 16},
        {"rope_type": "longrope", **LONG},
        {"rope_type": "longrope", "factor": 3.0, "attention_factor": 1.5, **LONG},
    ],
    ids=lambda scaling: scaling.get("rope_type", "none"),
)
def test_both_generations_spell_the_same_positions(scaling):
    old = read("LlamaForCausalLM", rope_theta=5000.0, rope_scaling=scaling or None)
    new = read("LlamaForCausalLM", rope_parameters={"rope_theta": 5000.0, "rope_type": "default", **scaling})
    older = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}
    assert old == new == read("LlamaForCausalLM", rope_theta=5000, rope_scaling=older or None)
    assert old.ropes[0].theta == 5000.0


def test_both_generations_spell_partial_rotation():
    old = read("GPTNeoXForCausalLM", rotary_pct=0.5, rotary_emb_base=500)
    new = read("GPTNeoXForCausalLM", rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 500.0})
    assert old == new and old.ropes[0].rotary_dim == 8


def test_gemma3_scales_its_full_layers_only_in_either_spelling():
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = read("Gemma3ForCausalLM", rope_theta=2e4, rope_local_base_freq=3e3, rope_scaling=scaling)
    local = {"rope_type": "default", "rope_theta": 3e3}
    full = {"rope_theta": 2e4, **scaling}
    new = read("Gemma3ForCausalLM", rope_parameters={"full_attention": full, "sliding_attention": local})
    assert old == new
    layers = {(rope.rope_type, rope.theta, window) for rope, window in zip(old.ropes, old.windows, strict=True)}
    assert layers == {("default", 3e3, 4096)}
    assert read("Gemma3ForCausalLM", sliding_window_pattern=2, rope_scaling=scaling).ropes[1].factor == 8.0


def test_yarn_promises_the_scaled_length():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert read("LlamaForCausalLM", rope_scaling=scaling).max_position == 512
    assert read("LlamaForCausalLM", rope_scaling={"rope_type": "llama3", **LLAMA3}).max_position == 128
    assert read("LlamaForCausalLM", rope_scaling=scaling).rope == "yarn x4"


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("LlamaForCausalLM", {"vocab_size": None}, "vocab_size is missing; it must be a whole number"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, r"num_key_value_heads is 3; supported: divisors of .*\(4\)"),
        ("LlamaForCausalLM", {"hidden_size": 66}, "hidden_size is 66; supported: multiples"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"rope_type": "linear", "factor": -1.0}},
            "factor is -1.0; supported: positive",
        ),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
            "factor is nan; supported: f",
        ),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"rope_type": "longrope", **LONG, "short_factor": [1.0]}},
            "lists of 8 numbers",
        ),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "default", "mrope_section": [1]}}, r"mrope_section is \[1\]"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1.0"),
        ("LlamaForCausalLM", {"sliding_window": 8}, "sliding_window is 8; only None is supported"),
        ("LlamaForCausalLM", {"attention_bias": "yes"}, "attention_bias is 'yes'; supported: true or false"),
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window is 0; supported: null or whole numbers from 1"),
        (
            "MistralForCausalLM",
            {"layer_types": ["full_attention"] * 4},
            "layer_types is .*; supported: sliding_attention",
        ),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types is .*for each of 4 layers"),
        ("Qwen2ForCausalLM", {"layer_types": ["linear_attention"] * 4}, "layer_types is .*full_attention or sliding"),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is None; supported: whole"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type default or longrope"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only False"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; supported: positive"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only None"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 9}, r"num_experts_per_tok is 9; supported: 1 to .* \(8\)"),
        ("FalconForCausalLM", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn is False"),
        ("FalconForCausalLM", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2; supported: 1"),
        (
            "FalconForCausalLM",
            {"new_decoder_architecture": True, "num_kv_heads": 3},
            "num_kv_heads is 3; supported: divisors",
        ),
        ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention is True; only False"),
        (
            "OPTForCausalLM",
            {"num_attention_heads": 5},
            "hidden_size is 64; supported: multiples of num_attention_heads",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key_and_value(architecture, changes, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(architecture, **changes)


@pytest.mark.parametrize("architecture", SMALLEST)
def test_a_quantized_checkpoint_is_refused_by_name(architecture):
    with pytest.raises(UnsupportedModelError, match="quantization_config is"):
        read(architecture, quantization_config={"quant_method": "gptq"})


def test_windows_follow_each_family_s_rule():
    """S42: the window of all layers, of late layers, of every other layer, or of none."""
    window = {"sliding_window": 7}
    assert read("MistralForCausalLM", **window).windows == (7,) * 4
    assert read("MistralForCausalLM", sliding_window=None).windows == (None,) * 4
    assert read("Qwen2ForCausalLM", **window).windows == (None,) * 4
    used = {**window, "use_sliding_window": True, "max_window_layers": 3}
    assert read("Qwen2ForCausalLM", **used).windows == (None, None, None, 7)
    assert read("Qwen3MoeForCausalLM", **used).windows == (7,) * 4
    assert read("Gemma2ForCausalLM", **window).windows == (7, None, 7, None)
    assert read("Gemma3ForCausalLM", **window, sliding_window_pattern=3).windows == (7, 7, None, 7)
    types = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    assert read("Gemma3ForCausalLM", **window, layer_types=types).windows == (None, None, 7, None)


def test_experts_stand_where_the_configuration_puts_them():
    places = {"decoder_sparse_step": 2, "mlp_only_layers": [1]}
    config = read("Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, **places)
    assert config.moe.layers == frozenset({3}) and config.moe.num_experts == 4
    assert read("MixtralForCausalLM", num_local_experts=6).moe.layers == frozenset(range(4))


def test_early_phi3_files_call_longrope_by_other_names():
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    configs = [read("Phi3ForCausalLM", rope_scaling={"type": name, **factors}) for name in ("su", "yarn", "longrope")]
    assert {config.ropes[0].rope_type for config in configs} == {"longrope"}
    assert configs[0].ropes[0].original_max_position == 4096


def test_gpt2_files_may_use_the_names_of_other_families():
    same = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert FAMILIES["GPT2LMHeadModel"].read(same) == read("GPT2LMHeadModel")


def test_a_nested_key_is_reported_with_its_section():
    reader = ConfigReader({"rope": {"factor": "x"}}).section("rope")
    with pytest.raises(UnsupportedModelError, match=r"config\.json: rope: factor is 'x'; supported: a number"):
        reader.required("factor", float)
