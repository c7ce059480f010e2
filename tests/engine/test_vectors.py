"""Requests that end with a vector: the numbers do not depend on the batch, on chunks or on cached pages."""

import asyncio
import itertools
import math

import pytest

from quire import LLM, AsyncEngine, EngineConfig, SamplingParams
from quire.base.errors import ContextLengthError, DeadlineExceededError, InvalidRequestError
from quire.base.pooling import POOLING_KINDS, PoolingParams

PROMPTS = ["Once upon a time", "a", "The quick brown fox " * 20, "there was a dog. " * 9, "x y z " * 33]
_ids = itertools.count()


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=512) as llm:
        yield llm


def _embed(llm, prompts, **params):
    outputs = llm.embed(prompts, PoolingParams(**params), use_tqdm=False)
    return [output.outputs.embedding for output in outputs]


@pytest.mark.parametrize("kind", POOLING_KINDS)
def test_a_vector_has_the_same_bits_alone_in_a_batch_and_in_chunks(llm, kind):
    alone = [_embed(llm, [prompt], pooling=kind)[0] for prompt in PROMPTS]
    assert len({tuple(vector) for vector in alone}) == len(PROMPTS)
    assert _embed(llm, PROMPTS, pooling=kind) == alone
    assert _embed(llm, PROMPTS[::-1], pooling=kind) == alone[::-1]
    for options in ({"max_num_batched_tokens": 24, "max_num_seqs": 8}, {"enable_prefix_caching": False}):
        with LLM(max_model_len=512, **options) as other:
            assert _embed(other, PROMPTS, pooling=kind) == alone


def test_a_vector_has_the_same_bits_beside_requests_that_generate():
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)

    async def run(overlaps):
        sizes = {"max_model_len": 512, "max_num_batched_tokens": 32, "max_num_seqs": 8}
        config = EngineConfig.from_options(debug=True, async_scheduling=overlaps, **sizes)
        engine = await AsyncEngine.start(config, in_process=True)
        try:

            async def text(prompt):
                return [o async for o in engine.generate(prompt, params, request_id=str(next(_ids)))][-1]

            async def vector(prompt, kind):
                output = await engine.encode(prompt, PoolingParams(pooling=kind), request_id=str(next(_ids)))
                return output.pooled

            alone = [await vector(prompt, "mean") for prompt in PROMPTS], [await text(prompt) for prompt in PROMPTS]
            jobs = [job for prompt in PROMPTS for job in (vector(prompt, "mean"), text(prompt))]
            mixed = await asyncio.gather(*jobs)
            assert mixed[::2] == alone[0]
            assert [o.outputs[0].token_ids for o in mixed[1::2]] == [o.outputs[0].token_ids for o in alone[1]]
            assert engine.stats.num_used_pages == 0
        finally:
            await engine.close()

    asyncio.run(run(False))
    asyncio.run(run(True))


def test_vectors_survive_preemption():
    """A cache too small for all of them: requests lose their pages and compute their prompts again."""
    prompts = [[7 + i] * 200 for i in range(6)]
    with LLM(max_model_len=512) as llm:
        expected = _embed(llm, prompts, pooling="mean")
        page = llm.info.resolved["memory"]["page_bytes"]
    small = {"kv_cache_memory_bytes": 20 * page, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    with LLM(max_model_len=300, debug=True, **small) as llm:
        assert _embed(llm, prompts, pooling="mean") == expected


def test_last_token_pooling_reads_cached_pages_and_the_others_do_not(llm):
    prompt = "an unusual beginning, " * 12
    for kind, is_cached in (("last", True), ("mean", False), ("cls", False), ("max", False)):
        llm.embed(prompt, PoolingParams(pooling=kind), use_tqdm=False)
        (output,) = llm.embed(prompt, PoolingParams(pooling=kind), use_tqdm=False)
        assert (output.num_cached_tokens > 0) is is_cached, kind


def test_dimensions_cut_before_the_vector_is_scaled(llm):
    whole, raw = _embed(llm, ["hello"], normalize=True)[0], _embed(llm, ["hello"], normalize=False)[0]
    assert math.isclose(math.hypot(*whole), 1.0, rel_tol=1e-6)
    assert whole == pytest.approx([number / math.hypot(*raw) for number in raw], rel=1e-5)
    short = _embed(llm, ["hello"], dimensions=8)[0]
    assert short == pytest.approx([number / math.hypot(*raw[:8]) for number in raw[:8]], rel=1e-5)
    assert len(whole) == llm.info.pooling.size
    with pytest.raises(InvalidRequestError, match=f"have {len(whole)} numbers"):
        _embed(llm, ["hello"], dimensions=len(whole) + 1)


def test_a_prompt_may_fill_the_models_whole_length(llm):
    assert len(_embed(llm, [[5] * 512])) == 1
    with pytest.raises(ContextLengthError, match="513 tokens"):
        _embed(llm, [[5] * 513])


@pytest.mark.parametrize("wrong", [{"pooling": "middle"}, {"dimensions": 0}, {"normalize": 1}, {"dimensions": True}])
def test_parameters_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        PoolingParams(**wrong)


def test_scores_of_an_embedding_model_are_cosines(llm):
    ones = llm.score("a dog", ["a dog", "the sea"], use_tqdm=False)
    assert ones[0].outputs.score == pytest.approx(1.0) and ones[1].outputs.score < 0.999
    with pytest.raises(InvalidRequestError, match="second has 3"):
        llm.score(["a", "b"], ["c", "d", "e"], use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="does not classify"):
        llm.classify("a dog", use_tqdm=False)


async def test_a_vector_request_can_be_aborted_and_has_a_deadline(draft_path):
    config = EngineConfig.from_options(model=draft_path, max_model_len=1024, debug=True)
    engine = await AsyncEngine.start(config, in_process=True)
    try:
        with pytest.raises(DeadlineExceededError):
            await engine.encode([3] * 900, request_id="late", timeout=1e-9)
        stream = await engine.submit([3] * 900, PoolingParams(), request_id="gone")
        await stream.aclose()
        assert (await engine.encode("still here", request_id="next")).pooled
        assert len(engine.requests) == 0 and engine.stats.num_used_pages == 0
    finally:
        await engine.close()


async def test_vectors_cross_the_process_boundary_bit_for_bit(llm):
    engine = await AsyncEngine.start(EngineConfig.from_options(max_model_len=512))
    try:
        output = await engine.encode(PROMPTS[2], request_id="a")
        (here,) = llm.encode(PROMPTS[2], use_tqdm=False)
        assert memoryview(output.pooled).cast("f").tolist() == here.outputs.data
        assert output.finished and output.outputs[0].finish_reason == "stop"
    finally:
        await engine.close()
