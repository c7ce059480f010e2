"""A directory becomes a `ModelInfo`, or an error that names what is not supported."""

import pytest

from quire.base.errors import UnsupportedModelError, WeightError
from quire.base.sampling import SamplingParams
from quire.models.generation_defaults import default_sampling
from quire.models.inspect import inspect_model


@pytest.fixture
def small(checkpoint_dir):
    return checkpoint_dir.config().tensors("model.safetensors", {"a": (8, 4), "b": (2,)}, "F16")


def test_a_checkpoint_is_described_from_config_and_headers(small):
    """S7, S10, S27"""
    info = inspect_model(small.path)
    assert (info.architecture, info.family, info.implementation) == ("LlamaForCausalLM", "LLaMA", "native")
    assert (info.num_parameters, info.stored_dtype, info.weight_files) == (34, "float16", ("model.safetensors",))
    assert [(layer.num_kv_heads, layer.head_dim) for layer in info.kv_layers] == [(2, 8)] * 2
    assert (info.vocab_rows, info.max_position, info.rope) == (64, 256, "default")
    assert info.eos_token_ids == (2,)


def test_missing_weights_are_an_error_unless_allowed(checkpoint_dir):
    """S125"""
    checkpoint_dir.config(dtype="bfloat16")
    with pytest.raises(WeightError, match="neither"):
        inspect_model(checkpoint_dir.path)
    info = inspect_model(checkpoint_dir.path, require_weights=False)
    assert (info.weight_files, info.num_parameters, info.stored_dtype) == ((), 0, "bfloat16")


def test_an_unsupported_model_is_named_before_its_broken_weights(checkpoint_dir):
    """S27: the reason comes before weights are read."""
    names = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    checkpoint_dir.config(**names, kv_lora_rank=4).raw("model.safetensors", b"garbage", b"")
    with pytest.raises(UnsupportedModelError, match="MLA"):
        inspect_model(checkpoint_dir.path)


@pytest.mark.parametrize("name", ["quantize_config.json", "hf_quant_config.json"])
def test_a_side_file_that_declares_quantization_is_honoured(small, name):
    """S7, S27: quantized weights are never loaded as if they were plain."""
    small.json(name, {"bits": 4})
    with pytest.raises(UnsupportedModelError, match=name):
        inspect_model(small.path)


def test_code_of_a_directory_is_noted_and_ignored(small, tmp_path):
    """SEC-5"""
    canary = tmp_path / "canary"
    small.config(auto_map={"AutoModelForCausalLM": "modeling_x.M"}, trust_remote_code=True)
    (small.path / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')")
    notes = " ".join(inspect_model(small.path).notes)
    assert all(word in notes for word in ("auto_map", "trust_remote_code", "modeling_x.py"))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [5, 6, 5]}, (5, 6)),
        ({"eos_token_id": 7}, (7,)),
        ({}, (2,)),
        ({"eos_token_id": [3, 64, -1, True, "x", None]}, (3,)),
    ],
)
def test_every_end_token_of_generation_config_is_kept(small, generation, expected):
    """S7: several end tokens, as Llama 3's chat models have; those outside the vocabulary are dropped."""
    small.json("generation_config.json", generation)
    assert inspect_model(small.path).eos_token_ids == expected


def test_sampling_defaults_come_from_generation_config(small):
    """S80"""
    file = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
            "max_new_tokens": 300}  # fmt: skip
    small.json("generation_config.json", file)
    fields = inspect_model(small.path).default_sampling
    assert fields == {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
                      "max_tokens": 300}  # fmt: skip
    SamplingParams(**fields)


def test_do_sample_false_means_greedy_and_absent_means_nothing():
    """S80"""
    assert default_sampling({"do_sample": False, "temperature": 0.7})[0]["temperature"] == 0.0
    assert default_sampling({})[0] == {}


def test_defaults_that_cannot_be_honoured_are_noted_not_dropped_silently():
    """S80"""
    fields, notes = default_sampling({"temperature": -1, "top_p": "x", "num_beams": 4, "top_k": 5.0, "typical_p": 1.0})
    assert fields == {"top_k": 5}
    assert [note.split(": ")[1].split(" is ")[0] for note in notes] == ["temperature", "top_p", "num_beams"]


def test_a_composite_checkpoint_is_described_by_its_text_part(checkpoint_dir):
    """S45: the sparse text_config of a Gemma 3 with images; heads and vocabulary are its class's defaults."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text,
              "vision_config": {"hidden_size": 1152}, "eos_token_id": [1, 106]}  # fmt: skip
    info = inspect_model(checkpoint_dir.json("config.json", config).path, require_weights=False)
    assert [(layer.num_kv_heads, layer.head_dim) for layer in info.kv_layers] == [(4, 256)] * 34
    assert (info.vocab_rows, info.max_position, info.eos_token_ids) == (262_208, 131_072, (1, 106))
    assert "only the text part runs" in " ".join(info.notes)
    assert "vision_config" not in info.config
