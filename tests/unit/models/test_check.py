"""`check_model` gives the right verdict for the right reason, with or without weights, and never loads torch."""

import dataclasses
import subprocess
import sys

import pytest

from quire.base.errors import ConfigError
from quire.models.check import LoadedSizes, check_model

OLMO2 = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
SUPPORTED = {
    "llama": {},
    "mistral with a window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "llama with llama3 rope": {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "gpt-neox": {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
                 "rotary_pct": 0.5, "num_key_value_heads": None},
}  # fmt: skip
ADAPTED = {
    "olmo2": OLMO2,
    "starcoder2": {"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2"},
    "granite": {"architectures": ["GraniteForCausalLM"], "model_type": "granite"},
}
REFUSED = {
    "mamba": ({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16},
              "state_size: state-space"),
    "jamba": ({"architectures": ["JambaForCausalLM"], "model_type": "jamba", "mamba_d_state": 16}, "recurrent state"),
    "qwen3-next": ({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
                    "layer_types": ["linear_attention", "full_attention"]}, "layer_types has linear_attention"),
    "deepseek-v3": ({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "kv_lora_rank": 512},
                    "MLA, kv_lora_rank"),
    "t5": ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
           "encoder-decoder"),
    "electra": ({"architectures": ["ElectraForMaskedLM"], "model_type": "electra"}, "encoder or a classifier"),
    "a decoder without a head": ({"architectures": ["LlamaModel"]}, "no language-model head"),
    "llava": ({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "vision_config": {"a": 1}},
              "images or sound (vision_config)"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized (gptq, 4 bits)"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "quantized (fp8)"),
    "bloom": ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, "ALiBi positions live in the attention"),
    "an unknown architecture": ({"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"},
                                "neither quire nor the installed transformers knows"),
    "no architecture": ({"architectures": []}, "architectures is []"),
    "an unknown rope": ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
    "an unknown activation": ({"hidden_act": "xielu2"}, "hidden_act is 'xielu2'"),
    "a missing key": ({"hidden_size": None}, "hidden_size is missing"),
    "an adapted model with a rope that depends on the batch": (
        {**OLMO2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic rope scales with the longest"),
    "an adapted model with an unknown rope": ({**OLMO2, "rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'"),
    "chunked attention": ({"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text",
                           "attention_chunk_size": 8192}, "attends in chunks"),
}  # fmt: skip


@pytest.mark.parametrize("changes", SUPPORTED.values(), ids=SUPPORTED)
def test_a_native_model_is_supported_before_its_weights_are_here(checkpoint_dir, changes):
    """S125, S27, S45"""
    report = check_model(checkpoint_dir.config(**changes).path)
    assert (report.verdict, report.is_supported) == ("supported", True), report.reason
    assert report.max_context == 256
    assert report.weight_bytes is None
    assert any("weights are not here" in note for note in report.notes)


@pytest.mark.parametrize("changes", ADAPTED.values(), ids=ADAPTED)
def test_a_model_transformers_knows_runs_by_the_adapter(checkpoint_dir, changes):
    """S125, S45"""
    pytest.importorskip("transformers")
    report = check_model(checkpoint_dir.config(**changes).path)
    assert (report.verdict, report.is_supported) == ("adapter", True), report.reason
    assert "transformers" in report.family
    assert report.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_for_a_named_reason(checkpoint_dir, changes, reason):
    """S125, S27: the reason names the key or the kind, and no weight is needed to tell."""
    report = check_model(checkpoint_dir.config(**changes).path)
    assert (report.verdict, report.is_supported) == ("refused", False)
    assert reason in report.reason


def test_the_report_counts_parameters_bytes_and_kv_from_the_headers(checkpoint_dir):
    """S125, S10: 2 x layers x kv heads x head size x bytes."""
    checkpoint_dir.config().tensors("model.safetensors", {"a": (100, 10), "b": (24,)}, "BF16")
    report = check_model(checkpoint_dir.path)
    assert (report.num_parameters, report.weight_bytes, report.dtype) == (1024, 2048, "bfloat16")
    assert report.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert "weights:            stored as bfloat16: 2.00 KiB" in report.lines()
    assert "KV cache per token: as bfloat16: 128 bytes" in report.lines()


def test_sizes_as_stored_and_as_loaded_are_told_apart(checkpoint_dir):
    """S10: what a plan in float32 will take is not read off the bytes of a file in bfloat16."""
    checkpoint_dir.config().tensors("model.safetensors", {"a": (100, 10), "b": (24,)}, "BF16")
    loaded = LoadedSizes(dtype="float32", weight_bytes=4096, kv_dtype="float16", kv_bytes_per_token=128)
    report = dataclasses.replace(check_model(checkpoint_dir.path), loaded=loaded)
    assert "weights:            stored as bfloat16: 2.00 KiB, loaded as float32: 4.00 KiB" in report.lines()
    assert "KV cache per token: as bfloat16: 128 bytes, used as float16: 128 bytes" in report.lines()
    assert report.as_dict()["loaded"]["weight_bytes"] == 4096


def test_a_damaged_weight_file_is_a_refusal_with_its_reason(checkpoint_dir):
    """S125, SEC-7"""
    checkpoint_dir.config().raw("model.safetensors", b"{}", b"extra")
    report = check_model(checkpoint_dir.path)
    assert report.verdict == "refused"
    assert "model.safetensors is damaged" in report.reason


def test_pickled_weights_are_a_refusal_with_the_way_out(checkpoint_dir):
    """SEC-3"""
    checkpoint_dir.config()
    (checkpoint_dir.path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safe_serialization" in check_model(checkpoint_dir.path).reason


def test_a_damaged_config_is_a_refusal(checkpoint_dir):
    """SEC-7"""
    (checkpoint_dir.path / "config.json").write_text("{")
    assert check_model(checkpoint_dir.path).reason.startswith("config.json is damaged")


def test_a_directory_that_is_no_checkpoint_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError):
        check_model(tmp_path)
    with pytest.raises(ConfigError):
        check_model(tmp_path / "absent")


def test_the_tool_format_is_asked_of_who_reads_templates(checkpoint_dir):
    """S125"""
    checkpoint_dir.config().json("tokenizer_config.json", {"chat_template": "<tool_call>"})
    report = check_model(checkpoint_dir.path, tool_format=lambda template: {"<tool_call>": "hermes"}[template])
    assert (report.has_chat_template, report.tool_format) == (True, "hermes")
    assert "tool calls:         hermes" in report.lines()


def test_a_damaged_tokenizer_config_is_noted_and_not_fatal(checkpoint_dir):
    """S125"""
    (checkpoint_dir.config().path / "tokenizer_config.json").write_text("{")
    report = check_model(checkpoint_dir.path)
    assert report.is_supported
    assert "tokenizer_config.json is damaged" in " ".join(report.notes)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("chat_template.jinja", lambda d: (d.path / "chat_template.jinja").write_text("[TOOL_CALLS]")),
        ("chat_template.json", lambda d: d.json("chat_template.json", {"chat_template": "[TOOL_CALLS]"})),
        ("several named templates", lambda d: d.json("tokenizer_config.json", {
            "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "[TOOL_CALLS]"}]})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_chat_template_is_found_wherever_checkpoints_keep_it(checkpoint_dir, name, write):
    """S125, S47"""
    write(checkpoint_dir.config())
    assert check_model(checkpoint_dir.path, tool_format=str.lower).tool_format == "[tool_calls]"


def test_a_base_model_has_no_chat_template(checkpoint_dir):
    """S125"""
    report = check_model(checkpoint_dir.config().path)
    assert (report.has_chat_template, report.tool_format) == (False, None)
    assert "chat template:      no" in report.lines()


def test_the_report_is_plain_data(checkpoint_dir):
    """S125: a machine reads it too."""
    report = check_model(checkpoint_dir.config().path)
    assert report.as_dict()["verdict"] == "supported"
    assert report.as_dict()["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("changes", [{}, OLMO2], ids=["native", "adapter"])
def test_checking_imports_neither_torch_nor_transformers(checkpoint_dir, changes):
    """S125, S86: an answer in the time it takes to read a few files."""
    path = checkpoint_dir.config(**changes).path
    code = (
        f"import sys; from quire.models.check import check_model; assert check_model({str(path)!r}).is_supported; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
