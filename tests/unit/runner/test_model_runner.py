"""The runner computes what a step says, whatever the rows, pages, chunks and neighbours."""

from __future__ import annotations

import random

import pytest
import torch

from quire.base.errors import StepError
from quire.base.sampling import SamplingParams
from quire.base.step import RowFailure

RNG = random.Random(3)
PROMPTS = [[RNG.randrange(61) for _ in range(n)] for n in (5, 17, 1, 30)]
SEEDED = SamplingParams(temperature=1.5, top_p=0.95, max_tokens=64)


def test_first_token_after_prefill_is_that_of_a_dense_forward(model, solo):
    """S36: the prompt's KV yields the reference's first token."""
    for prompt in PROMPTS:
        assert solo(prompt, 1) == [int(model.dense_logits(prompt)[-1].argmax())]


def test_seeded_draws_of_this_model_are_not_its_greedy_text(solo):
    """Guards the tests below: equal seeded text means something."""
    texts = {tuple(solo(PROMPTS[0], 10, SEEDED, seed=seed)) for seed in range(4)}
    assert len(texts | {tuple(solo(PROMPTS[0], 10))}) == 5


def test_decoding_equals_recomputing_the_whole_text_for_each_token(model, solo):
    """S37"""
    tokens = list(PROMPTS[1])
    for _ in range(12):
        tokens.append(int(model.dense_logits(tokens)[-1].argmax()))
    assert solo(PROMPTS[1], 12) == tokens[17:]


def test_a_decode_step_computes_one_token_and_one_row_of_logits_per_request(model, make_driver):
    """S37: work per step does not grow with the text."""
    driver = make_driver()
    driver.run([driver.add(row, prompt) for row, prompt in enumerate(PROMPTS)], 6)
    assert model.num_tokens == [sum(map(len, PROMPTS)), 4, 4, 4, 4, 4]
    assert model.logit_rows == [4] * 6


def test_chunks_before_the_last_compute_no_logits(model, make_driver):
    driver = make_driver()
    driver.run([driver.add(0, PROMPTS[3])], 1, chunk=7)
    assert model.num_tokens == [7, 7, 7, 7, 2]
    assert model.logit_rows == [1]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("page_size", [8, 16, 32])
def test_batched_and_chunked_output_equals_solo(make_driver, solo, params, chunk, page_size):
    """REL-15, S36: batch composition, chunking and page size change no token."""
    driver = make_driver(page_size=page_size)
    jobs = [driver.add(row, prompt, params, seed=row) for row, prompt in zip((3, 0, 7, 5), PROMPTS, strict=True)]
    expected = [solo(prompt, 10, params, seed=seed) for prompt, seed in zip(PROMPTS, (3, 0, 7, 5), strict=True)]
    assert driver.run(jobs, 10, chunk=chunk) == expected


def test_requests_that_join_while_others_decode_change_nothing(make_driver, solo):
    """REL-15: chunked prefill and decode in one step."""
    driver = make_driver()
    early, late = driver.add(1, PROMPTS[0], SEEDED, seed=11), driver.add(0, PROMPTS[3])
    driver.step({early: 5})
    for _ in range(3):
        driver.step({early: 1})
    driver.step({late: 12, early: 1})
    driver.step({early: 1, late: 12})
    driver.step({early: 1, late: 6})
    driver.run([early, late], 12)
    assert early.output == solo(PROMPTS[0], 12, SEEDED, seed=11)
    assert late.output == solo(PROMPTS[3], 12)


def test_permuted_physical_pages_give_identical_output(make_driver):
    """S12: positions map through the table, so any pages will do."""
    orders = [list(range(48)), list(range(47, -1, -1)), RNG.sample(range(48), 48)]
    results = []
    for order in orders:
        driver = make_driver(pages=order)
        params = SamplingParams(temperature=0.0, logprobs=5)
        jobs = [driver.add(row, prompt, params) for row, prompt in enumerate(PROMPTS)]
        driver.run(jobs, 10)
        results.append([(job.output, job.logprobs) for job in jobs])
    assert results[0] == results[1] == results[2]


def test_a_resumed_request_goes_on_as_if_never_preempted(make_driver, solo):
    """REL-15: pages and row are given up; the same tokens are drawn after recomputation."""
    driver = make_driver()
    victim, other = driver.add(0, PROMPTS[1], SEEDED, seed=5), driver.add(1, PROMPTS[0])
    driver.run([victim, other], 6)
    driver.free(victim)
    for _ in range(3):
        driver.step({other: 1})
    victim.row = 2
    driver.run([victim, other], 14)
    assert victim.output == solo(PROMPTS[1], 14, SEEDED, seed=5)
    assert other.output == solo(PROMPTS[0], 14)


def test_a_freed_row_is_reused_in_the_same_step(make_driver, solo):
    controlled = SamplingParams(
        temperature=2.0, repetition_penalty=1.5, logit_bias={3: 50.0}, min_tokens=9, max_tokens=9, logprobs=2
    )
    driver = make_driver()
    first = driver.add(0, PROMPTS[3], controlled, stop_ids=(1,), bad_words=((2,),))
    driver.run([first], 9)
    driver.free(first)
    second = driver.add(0, PROMPTS[2])
    sampled = driver.step({second: 1})
    assert sampled.logprobs is None
    driver.run([second], 10)
    assert second.output == solo(PROMPTS[2], 10)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seeded"])
def test_overlapped_launches_equal_stepwise_ones(make_driver, solo, params):
    """REL-15: step n+1 is launched before the tokens of step n are known on the host."""
    driver = make_driver()
    jobs = {driver.add(row, prompt, params, seed=row): prompt for row, prompt in enumerate(PROMPTS)}
    driver.run_overlapped(list(jobs), 9)
    for row, (job, prompt) in enumerate(jobs.items()):
        assert job.output == solo(prompt, 10, params, seed=row)


def test_a_forked_sample_diverges_after_one_page_copy(make_driver, solo, model):
    """S18: two samples share a prompt's pages; the one that writes first copies the partial page."""
    driver = make_driver()
    prompt = PROMPTS[1]  # 17 tokens: two full pages and one token in the third
    parent = driver.add(0, prompt, SEEDED, seed=1)
    driver.step({parent: 17})
    child = driver.add(1, prompt, SEEDED, seed=2)
    child.num_computed, child.pages = 16, [*parent.pages[:2], driver.free_pages.pop()]
    driver.copies = [(parent.pages[2], child.pages[2])]
    driver.run([parent, child], 12)
    assert model.num_tokens[:3] == [17, 2, 2]  # the child computes its last prompt token and nothing else again
    assert parent.output == solo(prompt, 12, SEEDED, seed=1)
    assert child.output == solo(prompt, 12, SEEDED, seed=2)


def test_a_running_row_goes_on_in_a_replaced_page(make_driver, solo):
    """S18: copy-on-write under a running row swaps one entry of its table."""
    driver = make_driver()
    job = driver.add(0, PROMPTS[1])
    driver.run([job], 3)
    old, new = job.pages[2], driver.free_pages.pop()
    job.pages[2] = new
    driver.copies, driver.replacements = [(old, new)], [(0, 2, new)]
    driver.step({job: 1})
    driver.runner.poison([old])
    driver.run([job], 12)
    assert job.output == solo(PROMPTS[1], 12)


def test_poisoned_free_pages_are_never_read(make_driver, solo):
    """SEC-35: every page is NaN before its first write, and the text is the same."""
    driver = make_driver()
    driver.runner.poison(list(range(48)))
    jobs = [driver.add(row, prompt) for row, prompt in enumerate(PROMPTS)]
    assert driver.run(jobs, 12, chunk=6) == [solo(prompt, 12) for prompt in PROMPTS]


def test_a_row_that_reads_a_poisoned_page_fails_alone(make_driver, solo):
    """SEC-35, REL-15: the NaN shows, and only in the row that owns the page."""
    driver = make_driver()
    jobs = [driver.add(row, prompt) for row, prompt in enumerate(PROMPTS)]
    driver.run(jobs, 3)
    driver.runner.poison(jobs[1].pages[:1])
    sampled = driver.step(dict.fromkeys(jobs, 1))
    assert list(sampled.failed_rows) == [1]
    assert "NaN" in sampled.failed_rows[1].reason
    assert sampled.token_ids[1] == []
    driver.free(jobs[1])
    healthy = [jobs[0], jobs[2], jobs[3]]
    assert driver.run(healthy, 10) == [solo(PROMPTS[i], 10) for i in (0, 2, 3)]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), "cpu"],
    ids=["python", "cuda", "cpu allocator"],
)
def test_running_out_of_memory_in_a_step_is_a_step_error_and_others_go_on(make_driver, solo, model, error):
    """REL-20: an allocation fails in step k; requests outside the step keep their text."""
    driver = make_driver()
    safe, doomed = driver.add(0, PROMPTS[0]), driver.add(1, PROMPTS[1])
    driver.run([safe, doomed], 3)

    def fail() -> None:
        if error == "cpu":
            torch.empty(1 << 50)
        raise error

    model.before_forward = fail
    with pytest.raises(StepError, match="max_num_batched_tokens"):
        driver.step({doomed: 1})
    model.before_forward = lambda: None
    doomed.token_ids = list(PROMPTS[2])
    driver.free(doomed)
    retry = driver.add(1, PROMPTS[2])
    assert driver.run([safe, retry], 10) == [solo(PROMPTS[0], 10), solo(PROMPTS[2], 10)]


def test_errors_that_are_not_about_memory_pass_through(make_driver, model):
    """A bug is not reported as a lack of memory."""
    driver = make_driver()

    def fail() -> None:
        raise RuntimeError("shape mismatch")

    model.before_forward = fail
    with pytest.raises(RuntimeError, match="shape mismatch"):
        driver.step({driver.add(0, [1]): 1})


def test_token_ids_outside_the_vocabulary_fail_their_row_and_never_reach_the_model(make_driver, solo):
    """SEC-13: the second line; the first is the request's validation."""
    driver = make_driver()
    bad, good = driver.add(0, [1, 61, -3]), driver.add(1, PROMPTS[0])
    sampled = driver.step({bad: 3, good: 5})
    assert sampled.failed_rows == {0: RowFailure("token id 61 is outside the model's vocabulary (0 to 60)")}
    assert driver.run([good], 5) == [solo(PROMPTS[0], 5)]
    driver.free(bad)
    assert driver.run([driver.add(0, PROMPTS[2])], 5) == [solo(PROMPTS[2], 5)]


def test_a_step_without_samples_answers_with_empty_lists(make_driver):
    driver = make_driver()
    sampled = driver.step({driver.add(0, PROMPTS[3]): 8})
    assert (sampled.token_ids, sampled.logprobs, sampled.failed_rows) == ([[]], None, {})


def test_waiting_twice_gives_the_same_answer(make_driver):
    driver = make_driver()
    pending = driver.runner.launch(driver.plan({driver.add(0, [1, 2]): 2}))
    assert pending.is_ready()
    assert pending.wait() is pending.wait()


def test_a_row_may_draw_one_token_past_the_longest_length(make_driver):
    """The overlapped loop launches one step more than a request of full length needs."""
    driver = make_driver()
    job = driver.add(0, [5] * 127)
    driver.step({job: 127})
    driver.step({job: 1})
    assert len(job.token_ids) == 129
