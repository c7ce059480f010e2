"""Requests that pool, as the scheduler sees them: one answer, no token; an encoder's prompts whole or not yet."""

import pytest

from quire.base.outputs import FinishReason
from quire.base.pooling import Pooling
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.base.step import SampledTokens
from quire.cache.manager import KVCacheManager
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.scheduler import Scheduler


def _request(name, length):
    params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, skip_reading_prefix_cache=True)
    return EngineRequest(
        request_id=name, prompt_token_ids=[5] * length, params=params, max_tokens=1, seed=0, arrival_time=0.0,
        pooling=Pooling(kind="mean"),
    )  # fmt: skip


@pytest.fixture
def make_scheduler():
    def make(*, pages=16, **limits):
        sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_prefill_tokens_mixed": 32, "max_model_len": 32}
        cache = KVCacheManager(pages, 8, enable_prefix_caching=False)
        return Scheduler(SchedulerLimits(**sizes | limits), cache, clock=lambda: 0.0)

    return make


def _answer(work):
    pooled = {line: b"\0\0\0\0" for line, ends in enumerate(work.samples) if ends}
    return SampledTokens(token_ids=[[] for _ in work.rows], pooled=pooled)


def test_a_vector_ends_its_request_after_the_last_chunk(make_scheduler):
    scheduler = make_scheduler(max_num_batched_tokens=10, max_prefill_tokens_mixed=10)
    scheduler.add(_request("a", 25))
    counts, outputs = [], []
    while scheduler.has_unfinished:
        work = scheduler.schedule()
        counts.append(work.num_scheduled)
        outputs += scheduler.commit(work, _answer(work))
        scheduler.check()
    assert counts == [[10], [10], [5]]
    (output,) = outputs
    assert (output.pooled, output.token_ids, output.finish_reason) == (b"\0\0\0\0", [], FinishReason.STOP)
    assert scheduler.stats().generation_tokens == 0 and scheduler.stats().num_used_pages == 0


def test_nothing_is_scheduled_for_a_request_whose_vector_is_in_flight(make_scheduler):
    scheduler = make_scheduler()
    scheduler.add(_request("a", 9))
    work = scheduler.schedule()
    assert scheduler.schedule() is None
    assert [output.request_id for output in scheduler.commit(work, _answer(work))] == ["a"]


def test_a_prompt_that_pools_may_fill_the_models_length(make_scheduler):
    assert make_scheduler().add(_request("a", 32)) == []
    (refused,) = make_scheduler().add(_request("a", 33))
    assert refused.error_kind == "ContextLengthError"


def test_an_encoders_prompt_waits_for_a_step_that_holds_all_of_it(make_scheduler):
    scheduler = make_scheduler(whole_prompts=True)
    for name, length in (("a", 20), ("b", 20), ("c", 12)):
        scheduler.add(_request(name, length))
    steps = []
    while scheduler.has_unfinished:
        work = scheduler.schedule()
        assert all(work.samples) and work.starts == [0] * len(work.rows)
        steps.append(work.num_scheduled)
        scheduler.commit(work, _answer(work))
    assert steps == [[20], [20, 12]]
