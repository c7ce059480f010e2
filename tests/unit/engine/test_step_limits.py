"""Tokens per step follow from the model, the threads and the instruction set."""

import dataclasses

import pytest

from quire.engine.step_limits import CPU_OPERATIONS_PER_SECOND, LEAST_TOKENS, MIXED_SECONDS, MOST_TOKENS, cpu_limits
from quire.models.info import KVLayerSpec, ModelInfo


def model(layer_parameters, hidden=512, vocabulary=1000):
    """A model with so many parameters besides its token table."""
    return ModelInfo(
        path="/models/m",
        architecture="LlamaForCausalLM",
        family="LLaMA",
        implementation="native",
        config={"hidden_size": hidden},
        kv_layers=(KVLayerSpec(2, 16),),
        max_position=1024,
        vocab_rows=vocabulary,
        stored_dtype="bfloat16",
        weight_files=(),
        num_parameters=layer_parameters + hidden * vocabulary,
    )


def test_a_tiny_model_is_not_throttled():
    limits = cpu_limits(model(2_000_000), kernels="avx2", threads=1)
    assert (limits.max_num_batched_tokens, limits.max_prefill_tokens_mixed) == (MOST_TOKENS, MOST_TOKENS)


def test_prompt_tokens_beside_decodes_take_the_seconds_they_may():
    limits = cpu_limits(model(100_000_000), kernels="avx512", threads=2)
    seconds = limits.max_prefill_tokens_mixed * 2 * 100_000_000 / (2 * CPU_OPERATIONS_PER_SECOND["avx512"])
    assert 0.9 * MIXED_SECONDS < seconds <= MIXED_SECONDS
    assert limits.max_num_batched_tokens == MOST_TOKENS


def test_steps_of_a_larger_model_get_longer_before_they_mostly_read_its_weights():
    """At 0.05 seconds a 1B model would compute 30 tokens a step, and read all its weights for them."""
    limits = cpu_limits(model(1_000_000_000), kernels="avx512bf16", threads=2)
    assert limits.max_prefill_tokens_mixed == 120
    assert cpu_limits(model(4_000_000_000), kernels="avx512bf16", threads=2).max_prefill_tokens_mixed == LEAST_TOKENS


def test_a_large_model_gets_the_fewest_tokens_that_are_worth_reading_its_weights_for():
    limits = cpu_limits(model(8_000_000_000), kernels="avx2", threads=2)
    assert (limits.max_num_batched_tokens, limits.max_prefill_tokens_mixed) == (LEAST_TOKENS, LEAST_TOKENS)


@pytest.mark.parametrize(("slower", "faster"), [("portable", "avx2"), ("reference", "avx2"), ("avx2", "avx512")])
def test_better_kernels_and_more_threads_take_more_tokens(slower, faster):
    info = model(500_000_000)
    few = cpu_limits(info, kernels=slower, threads=2).max_num_batched_tokens
    more = cpu_limits(info, kernels=faster, threads=2).max_num_batched_tokens
    assert few < more < cpu_limits(info, kernels=faster, threads=4).max_num_batched_tokens


def test_an_instruction_set_without_a_rate_counts_as_the_slowest():
    info = model(20_000_000)
    assert cpu_limits(info, kernels="neon", threads=4) == cpu_limits(info, kernels="portable", threads=4)


def test_the_token_table_counts_for_nothing():
    small, large = (cpu_limits(model(100_000_000, vocabulary=v), kernels="avx2", threads=2) for v in (100, 200_000))
    assert small == large
    unknown = dataclasses.replace(model(100_000_000, vocabulary=100), config={})
    assert cpu_limits(unknown, kernels="avx2", threads=2).max_num_batched_tokens <= small.max_num_batched_tokens
