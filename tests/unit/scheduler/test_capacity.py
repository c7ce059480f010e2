"""How many requests the same memory carries: pages against one contiguous stretch of the model's length each."""

from __future__ import annotations

import random

from quire.base.paging import pages_for
from quire.base.step import SampledTokens

MODEL_LEN, NUM_TOKENS = 2048, 16 * 2048


def mixed_trace():
    """Prompt and output lengths in tokens: three short chats to every long document, seeded."""
    rng = random.Random(22)
    for _ in range(300):
        if rng.random() < 0.75:
            yield rng.randint(20, 200), rng.randint(20, 150)
        else:
            yield rng.randint(400, 1600), rng.randint(20, 300)


def test_pages_carry_three_times_the_requests_of_contiguous_stretches(sim):
    """S22: mean concurrency while the queue is full, in memory that holds 16 stretches of the model's length."""
    size = 16
    s = sim(
        num_pages=pages_for(NUM_TOKENS, size),
        page_size=size,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        max_prefill_tokens_mixed=1024,
        max_model_len=MODEL_LEN,
        enable_prefix_caching=False,
        check=False,
    )
    s.device.launch = _sample_ones
    for i, (num_prompt, num_output) in enumerate(mixed_trace()):
        s.add([i % 50] * num_prompt, max_tokens=num_output)
    running = []
    while s.scheduler.has_waiting:
        s.step()
        running.append(s.scheduler.stats().num_running)
    s.run()
    s.scheduler.check()
    mean, contiguous = sum(running) / len(running), NUM_TOKENS // MODEL_LEN
    print(f"pages: {mean:.1f} requests at once, contiguous: {contiguous}, ratio {mean / contiguous:.1f}")
    assert mean >= 3 * contiguous


def _sample_ones(work):
    return SampledTokens(token_ids=[[1] if samples else [] for samples in work.samples])
