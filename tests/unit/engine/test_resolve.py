"""What the user asked becomes what the engine does."""

import dataclasses
import json

import pytest

from quire import EngineConfig
from quire.base.errors import ConfigError
from quire.engine.resolve import DeviceFacts, resolve, served_names
from quire.models.info import KVLayerSpec, ModelInfo

INFO = ModelInfo(
    path="/models/secret/m",
    architecture="LlamaForCausalLM",
    family="LLaMA",
    implementation="native",
    config={"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
    kv_layers=(KVLayerSpec(2, 16),),
    max_position=1024,
    vocab_rows=256,
    stored_dtype="bfloat16",
    weight_files=("model.safetensors",),
    num_parameters=100_000,
)
CPU = DeviceFacts(name="cpu", auto_dtype="float32", free_bytes=2**30, threads=8)


def _resolve(facts=CPU, info=INFO, **options):
    return resolve(EngineConfig.from_options(**options), info, facts, tokenizer_path="/models/secret/m")


def test_nothing_is_left_undecided():
    """S4: every setting has its value before weights are read."""
    resolved = _resolve()
    assert all(getattr(resolved, spec.name) not in (None, "auto") for spec in dataclasses.fields(resolved))
    assert resolved.max_model_len == 1024
    assert resolved.dtype == resolved.kv_cache_dtype == "float32"


def test_what_was_asked_for_is_what_is_done():
    """S79: no setting is parsed and ignored."""
    asked = {
        "dtype": "bfloat16", "kv_cache_dtype": "float32", "page_size": 32, "enable_prefix_caching": False,
        "max_model_len": 512, "max_num_seqs": 3, "max_num_batched_tokens": 40, "max_prefill_tokens_mixed": 7,
        "max_num_waiting": 9, "scheduling_policy": "fcfs", "priority_ageing_seconds": 2.0, "async_scheduling": True,
        "seed": 5, "debug": True, "threads": 2,
    }  # fmt: skip
    resolved = _resolve(**asked, kv_cache_memory_bytes=2**20)
    assert {name: getattr(resolved, name) for name in asked} == asked
    assert resolved.memory.kv_bytes <= 2**20 < resolved.memory.kv_bytes + resolved.memory.page_bytes


def test_small_models_get_one_thread_and_large_ones_all():
    big = dataclasses.replace(INFO, num_parameters=40_000_000)
    assert (_resolve().threads, _resolve(info=big).threads) == (1, 8)


WITH_KERNELS = dataclasses.replace(CPU, kernels="avx2")


def test_the_cpu_kernels_hold_weights_as_the_checkpoint_does():
    assert _resolve(WITH_KERNELS).weight_format == "bfloat16"
    assert _resolve(WITH_KERNELS).memory.weight_bytes == 2 * INFO.num_parameters
    assert _resolve(CPU).weight_format == "float32"
    in_float32 = dataclasses.replace(INFO, stored_dtype="float32")
    assert _resolve(WITH_KERNELS, in_float32).weight_format == "float32"


def test_products_are_of_bfloat16_where_the_processor_has_them_unless_float32_is_asked_for():
    facts = dataclasses.replace(WITH_KERNELS, kernels="avx512bf16")
    assert _resolve(facts).weight_format == "bfloat16_dot"
    assert _resolve(facts).memory.weight_bytes == 2 * INFO.num_parameters
    assert _resolve(facts, dtype="float32").weight_format == "bfloat16"
    assert _resolve(facts, dataclasses.replace(INFO, stored_dtype="float32")).weight_format == "float32"


def test_the_cpu_kernels_keep_k_and_v_in_a_checkpoints_bfloat16():
    assert _resolve(WITH_KERNELS).kv_cache_dtype == "bfloat16"
    assert _resolve(WITH_KERNELS, quantization="int8").kv_cache_dtype == "bfloat16"
    assert _resolve(WITH_KERNELS, dtype="float32").kv_cache_dtype == "float32"
    assert _resolve(WITH_KERNELS, kv_cache_dtype="float32").kv_cache_dtype == "float32"
    assert _resolve(CPU).kv_cache_dtype == "float32"


def test_quantized_weights_are_counted_with_their_scales():
    resolved = _resolve(WITH_KERNELS, quantization="int4")
    assert resolved.weight_format == "int4"
    assert resolved.memory.weight_bytes == int(INFO.num_parameters * (0.5 + 2 / 32))


def test_packed_weights_are_counted_with_their_padding():
    """S10: 20 rows fill two panels of 16, 40 columns a group of 64; a table keeps eight bits, a norm 32."""
    shapes = {"model.embed_tokens.weight": (20, 40), "a.o_proj.weight": (20, 40), "model.norm.weight": (40,)}
    info = dataclasses.replace(INFO, shapes=shapes)
    panel_int8, panel_int4 = 16 * 64 + 16 * 4, 2 * (16 * 32 // 2 + 16 * 2)
    assert _resolve(WITH_KERNELS, info, quantization="int4").memory.weight_bytes == 2 * (panel_int8 + panel_int4) + 160


@pytest.mark.parametrize(
    ("facts", "options"),
    [(CPU, {}), (WITH_KERNELS, {"dtype": "bfloat16"}), (dataclasses.replace(WITH_KERNELS, name="cuda"), {})],
)
def test_quantizing_without_the_kernels_is_refused_with_the_way_out(facts, options):
    with pytest.raises(ConfigError, match=r"quantization is int8.*Set quantization to none"):
        _resolve(facts, quantization="int8", **options)


def test_what_was_asked_of_a_step_wins_over_its_arithmetic():
    big = dataclasses.replace(INFO, num_parameters=4_000_000_000, weight_files=())
    facts = dataclasses.replace(CPU, free_bytes=2**40)
    resolved = _resolve(facts, big, max_num_batched_tokens=3000, max_prefill_tokens_mixed=2000)
    assert (resolved.max_num_batched_tokens, resolved.max_prefill_tokens_mixed) == (3000, 2000)
    resolved = _resolve(facts, big, preset="throughput")
    assert (resolved.max_num_batched_tokens, resolved.max_prefill_tokens_mixed) == (4096, 2048)


def test_a_model_that_torch_computes_is_given_steps_by_torchs_rate():
    info = dataclasses.replace(INFO, num_parameters=500_000_000)
    facts = dataclasses.replace(WITH_KERNELS, free_bytes=2**40)
    on_kernels, on_torch = (_resolve(facts, info, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert on_kernels.runs_on_kernels and not on_torch.runs_on_kernels
    assert on_kernels.max_num_batched_tokens > on_torch.max_num_batched_tokens


def test_kv_pages_in_a_type_that_the_kernels_do_not_read_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"kv_cache_dtype is float16.*Set kv_cache_dtype to bfloat16"):
        _resolve(WITH_KERNELS, kv_cache_dtype="float16")
    assert _resolve(CPU, kv_cache_dtype="float16").kv_cache_dtype == "float16"
    assert _resolve(WITH_KERNELS, kv_cache_dtype="int8").kv_cache_dtype == "int8"


def test_prefill_beside_decodes_never_exceeds_the_step():
    assert _resolve(max_num_batched_tokens=64).max_prefill_tokens_mixed == 64
    assert _resolve(max_num_seqs=3000).max_num_batched_tokens == 3000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 100, "max_num_batched_tokens": 50}, r"max_num_batched_tokens \(50\).*max_num_seqs \(100\)"),
        ({"max_model_len": 2048}, r"2048.*1024 positions"),
        ({"tensor_parallel_size": 2}, "Set it to 1"),
        ({"kv_cache_memory_bytes": 1}, "Set kv_cache_memory_bytes to at least"),
        ({"kv_cache_memory_bytes": 2**40}, "smaller"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_setting_that_changes_it(options, message):
    """S79: found, allowed, and the way out."""
    with pytest.raises(ConfigError, match=message):
        _resolve(**options)


def test_the_description_is_plain_data_without_file_paths():
    """SEC-30: /server_info shows it."""
    text = json.dumps(_resolve().as_dict())
    assert "secret" not in text
    assert json.loads(text)["memory"]["num_pages"] > 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model": "org/name"}, ("org/name",)),
        ({"model": "/models/mine"}, ("mine",)),
        ({"model": "./mine/"}, ("mine",)),
        ({"model": "org/name", "served_model_name": ("a", "b")}, ("a", "b")),
        ({}, ("quire-demo",)),
    ],
)
def test_a_model_is_served_under_the_name_its_user_knows(options, names):
    assert served_names(EngineConfig.from_options(**options)) == names
