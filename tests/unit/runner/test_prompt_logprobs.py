"""Log-probabilities of prompt tokens equal those of one dense pass, in any chunks, and stay small in memory."""

from __future__ import annotations

import pytest

from quire.base.sampling import SamplingParams
from quire.runner import prompt_logprobs

PROMPT = [(7 * i + 3) % 61 for i in range(29)]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_prompt_logprobs_equal_a_full_forward_in_any_chunks(model, make_driver, chunk):
    params = SamplingParams(temperature=0.0, prompt_logprobs=3, max_tokens=9)
    driver = make_driver()
    job, other = driver.add(0, PROMPT, params), driver.add(1, PROMPT[:4])
    driver.run([job, other], 2, chunk=chunk)
    expected = model.dense_logits(PROMPT).log_softmax(-1)
    assert len(job.prompt_logprobs) == len(PROMPT) - 1
    assert other.prompt_logprobs == []
    for position, entry in enumerate(job.prompt_logprobs, start=1):
        row = expected[position - 1]
        assert entry.token_ids == [PROMPT[position], *row.topk(3).indices.tolist()]
        assert entry.logprobs == pytest.approx(row[entry.token_ids].tolist(), abs=1e-4)
        assert entry.ranks == [1 + int((row > row[PROMPT[position]]).sum()), 1, 2, 3]


def test_a_long_prompt_never_holds_all_its_logits_at_once(model, make_driver, monkeypatch):
    """SEC-12: logits are computed in chunks of bounded bytes."""
    params = SamplingParams(temperature=0.0, prompt_logprobs=0)
    whole, parts = make_driver(), make_driver()
    expected = whole.add(0, PROMPT, params)
    whole.run([expected], 1)
    model.logit_rows.clear()
    monkeypatch.setattr(prompt_logprobs, "CHUNK_BYTES", 5 * 61 * 4)
    job = parts.add(0, PROMPT, params)
    parts.run([job], 1)
    assert sorted(model.logit_rows) == [1, 3, 5, 5, 5, 5, 5]
    assert [entry.token_ids for entry in job.prompt_logprobs] == [[token] for token in PROMPT[1:]]
    for one, other in zip(job.prompt_logprobs, expected.prompt_logprobs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_the_last_prompt_token_has_an_entry_and_output_tokens_have_none(make_driver):
    params = SamplingParams(temperature=0.0, prompt_logprobs=1)
    driver = make_driver()
    job = driver.add(0, PROMPT[:2], params)
    first = driver.step({job: 2})
    assert [entry.token_ids[0] for entry in first.prompt_logprobs[0]] == [PROMPT[1]]
    assert driver.step({job: 1}).prompt_logprobs == {}


def test_the_whole_vocabulary_is_given_when_asked_for(make_driver):
    driver = make_driver()
    job = driver.add(0, PROMPT[:3], SamplingParams(temperature=0.0, prompt_logprobs=-1, logprobs=-1))
    driver.step({job: 3})
    for entry in (*job.prompt_logprobs, *job.logprobs):
        assert sorted(entry.token_ids[1:]) == list(range(61))
        assert entry.ranks[1:] == list(range(1, 62))


def test_nan_in_a_prompt_fails_its_row_and_sends_no_numbers(make_driver):
    """REL-13"""
    driver = make_driver()
    job = driver.add(0, PROMPT, SamplingParams(temperature=0.0, prompt_logprobs=1))
    driver.step({job: 9})
    driver.runner.poison(job.pages[:1])
    sampled = driver.step({job: 5})
    assert "NaN" in sampled.failed_rows[0].reason
    assert sampled.prompt_logprobs == {}
