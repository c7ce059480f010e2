"""The memory plan: exact where it says so, and clear when something does not fit."""

import pytest

from quire.base.errors import ConfigError
from quire.engine.memory import MemoryRequest, format_bytes, plan_memory
from quire.models.info import KVLayerSpec, ModelInfo
from quire.runner.sizing import kv_bytes

GIB = 2**30


def _info(**changes):
    values = {
        "path": "m",
        "architecture": "LlamaForCausalLM",
        "family": "LLaMA",
        "implementation": "native",
        "config": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
        "kv_layers": (KVLayerSpec(2, 16), KVLayerSpec(2, 16)),
        "max_position": 1024,
        "vocab_rows": 256,
        "stored_dtype": "bfloat16",
        "weight_files": ("model.safetensors",),
        "num_parameters": 100_000,
    }
    return ModelInfo(**(values | changes))


def _plan(info=None, free_bytes=GIB, **changes):
    values = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "weight_format": "float32",
        "kv_dtype": "float32",
        "page_size": 16,
    }
    return plan_memory(info or _info(), MemoryRequest(**(values | changes)), free_bytes=free_bytes)


def test_bytes_per_token_follow_the_formula():
    """S10: 2 x layers x kv heads x head size x bytes per number."""
    assert _plan().kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert _plan(kv_dtype="bfloat16").kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert _plan(kv_dtype="int8").kv_bytes_per_token == 2 * 2 * 2 * (16 + 4)


def test_without_a_budget_the_cache_takes_what_full_concurrency_needs():
    """S4: eight requests of the full length fit, and not a page more is taken."""
    plan = _plan()
    assert plan.num_tokens == 8 * 1024
    assert plan.kv_bytes == kv_bytes(_info().kv_layers, num_pages=plan.num_pages, page_size=16, itemsize=4)


def test_a_byte_budget_is_never_exceeded():
    """S10: pages come from arithmetic; what is left over is less than a page."""
    plan = _plan(kv_budget=1_000_000)
    assert 1_000_000 - plan.page_bytes < plan.kv_bytes <= 1_000_000


def test_scarce_memory_shortens_the_derived_length_instead_of_failing():
    """D2: auto-fit by default."""
    plan = _plan(kv_budget=40 * 16 * 512)
    assert plan.max_model_len == 640
    assert plan.num_pages == 40


def test_a_length_that_was_asked_for_is_never_shortened():
    """S79: refused with the numbers and the settings that would fit."""
    with pytest.raises(ConfigError, match=r"kv_cache_memory_bytes to at least 524288.*max_model_len to at most 640"):
        _plan(kv_budget=40 * 16 * 512, max_model_len=1024)


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic():
    """S79, D2: weights, pages, workspace and what is free."""
    with pytest.raises(ConfigError, match=r"weights 3\.7 GiB.*1\.0 GiB are free.*dtype=bfloat16"):
        _plan(_info(num_parameters=10**9))


def test_the_ledger_shows_every_part():
    """S4: weights, pages, workspace, total, concurrency."""
    text = "\n".join(_plan().lines())
    for part in ("weights", "KV pages", "workspace", "total", "8.0 requests of the full 1024"):
        assert part in text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**41, "2048.0 GiB")]
)
def test_byte_counts_read_well(count, text):
    assert format_bytes(count) == text
