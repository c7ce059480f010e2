"""The backbone: the same prompts give the same tokens, however they are run.

One table of ways to run; every way is compared token for token with each prompt run alone, greedy and seeded. What a
way claims to exercise (preemption, prefix hits, copies) is asserted from the engine's counters, so that no row of the
table can silently stop testing what it names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from quire import LLM, AsyncEngine, EngineConfig, SamplingParams
from quire.base.metrics import EngineStats

MAX_TOKENS = 40
QUESTIONS = [
    "hello, who are you?",
    "count from 3 to 9",
    "what is 23 + 45?",
    "spell the word garden",
    "tell me a short story",
    "sort these numbers: 41, 7, 19",
    "My name is Ada. Remember it. " * 12 + "What is my name?",
    "what can you do?",
    "x",
    "Please write a long answer about the sea and the sky. " * 20,
]


def _greedy(index: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)


def _seeded(index: int) -> SamplingParams:
    return SamplingParams(
        temperature=1.5, top_p=0.95, top_k=50, seed=1000 + index, max_tokens=MAX_TOKENS, ignore_eos=True
    )


SAMPLING = {"greedy": _greedy, "seeded": _seeded}


@dataclass(frozen=True)
class Way:
    """One way to run the prompts: engine options, how often, and what the counters must show afterwards."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    shows: Callable[[EngineStats], bool] = lambda stats: True


WAYS = [
    Way("batched"),
    Way("batched without prefix cache", {"enable_prefix_caching": False}),
    Way("two rows at a time", {"max_num_seqs": 2}),
    Way("chunked to 16 tokens a step", {"max_num_batched_tokens": 16, "max_num_seqs": 8}),
    Way("prefill capped while decodes run", {"max_prefill_tokens_mixed": 5}),
    Way("prefix hit", rounds=2, shows=lambda s: s.prefix_hits > 100),
    Way("prefix hit, chunked", {"max_num_batched_tokens": 16, "max_num_seqs": 8}, 2, lambda s: s.prefix_hits > 100),
    Way("preempted", {"pages": 32}, shows=lambda s: s.preemptions > 3),
    Way(
        "preempted without prefix cache",
        {"pages": 32, "enable_prefix_caching": False},
        shows=lambda s: s.preemptions > 3,
    ),
    Way("overlapped", {"async_scheduling": True}),
    Way("overlapped, preempted", {"async_scheduling": True, "pages": 32}, shows=lambda s: s.preemptions > 3),
    Way(
        "overlapped, chunked, prefix hit",
        {"async_scheduling": True, "max_num_batched_tokens": 24, "max_num_seqs": 8},
        2,
    ),
    Way("poisoned freed pages", {"debug": True, "pages": 32}, shows=lambda s: s.preemptions > 3),
    *(Way(f"page size {size}", {"page_size": size}, rounds=2) for size in (8, 16, 32, 64, 128)),
]


@pytest.fixture(scope="module", params=["draft_path", pytest.param("demo_path", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> str:
    """The small built-in model, and in the slow tests the other one too; they have one tokenizer."""
    path: str = request.getfixturevalue(request.param)
    return path


def _llm(model: str, options: dict[str, Any]) -> LLM:
    """The model; `pages` among the options becomes a cache of so many pages of 16 tokens."""
    options = dict(options)
    if "pages" in options:
        with LLM(model, max_model_len=512) as probe:
            page_bytes = probe.info.resolved["memory"]["page_bytes"]
        options |= {"max_model_len": 512, "kv_cache_memory_bytes": options.pop("pages") * page_bytes}
    return LLM(model, **options)


def _prompts(llm: LLM) -> list[list[int]]:
    template = llm.chat_template
    assert template is not None
    texts = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [llm.tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _run(llm: LLM, sampling: str) -> list[list[int]]:
    params = [SAMPLING[sampling](i) for i in range(len(QUESTIONS))]
    outputs = llm.generate(_prompts(llm), params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def solo(model: str) -> dict[str, list[list[int]]]:
    """Every prompt alone in a fresh engine without prefix cache."""
    with LLM(model, enable_prefix_caching=False) as llm:
        prompts = _prompts(llm)
        return {
            name: [llm.generate(p, make(i), use_tqdm=False)[0].outputs[0].token_ids for i, p in enumerate(prompts)]
            for name, make in SAMPLING.items()
        }


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_tokens_equal_those_of_each_prompt_alone(
    way: Way, sampling: str, model: str, solo: dict[str, list[list[int]]]
) -> None:
    """S6, S24, S76, REL-6, REL-15, SEC-35: no way of running changes a token."""
    with _llm(model, way.options) as llm:
        for _ in range(way.rounds):
            assert _run(llm, sampling) == solo[sampling]
        assert way.shows(llm.stats), llm.stats


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_forked_samples_equal_the_same_fork_alone_and_copy_pages(
    overlap: bool, model: str, solo: dict[str, list[list[int]]]
) -> None:
    """S18: n samples share their prompt's pages, diverge by copying, and do not depend on their company."""
    with LLM(model, async_scheduling=overlap) as llm:
        prompts = _prompts(llm)[5:]  # one of a single letter and two of many pages among them
        params = [
            SamplingParams(temperature=1.5, seed=1000 + i, n=3, max_tokens=MAX_TOKENS, ignore_eos=True)
            for i in range(len(prompts))
        ]
        alone = [llm.generate(p, one, use_tqdm=False)[0] for p, one in zip(prompts, params, strict=True)]
        together = llm.generate(prompts, params, use_tqdm=False)
        for single, batched in zip(alone, together, strict=True):
            assert [o.token_ids for o in single.outputs] == [o.token_ids for o in batched.outputs]
        num_diverged = sum(len({tuple(o.token_ids) for o in output.outputs}) > 1 for output in together)
        assert num_diverged > len(prompts) / 2
        assert llm.stats.page_copies >= len(prompts)
        greedy = SamplingParams(temperature=0.0, n=3, max_tokens=MAX_TOKENS, ignore_eos=True)
        for tokens, output in zip(solo["greedy"][5:], llm.generate(prompts, greedy, use_tqdm=False), strict=True):
            assert [o.token_ids for o in output.outputs] == [tokens] * 3


def test_forked_samples_survive_preemption(model: str) -> None:
    """S18, REL-6: forks that are preempted and recomputed draw the same tokens."""
    params = SamplingParams(temperature=1.5, seed=5, n=4, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(model) as roomy, _llm(model, {"pages": 36}) as tight:
        prompts = _prompts(roomy)[:6]
        expected = roomy.generate(prompts, params, use_tqdm=False)
        found = tight.generate(prompts, params, use_tqdm=False)
        assert tight.stats.preemptions > 0
    for one, other in zip(expected, found, strict=True):
        assert [o.token_ids for o in one.outputs] == [o.token_ids for o in other.outputs]


@pytest.mark.parametrize("in_process", [True, False], ids=["thread", "process"])
async def test_async_engine_draws_the_tokens_of_the_offline_engine(
    in_process: bool, model: str, solo: dict[str, list[list[int]]]
) -> None:
    """S3: one engine core behind a Python call, a thread and a process gives the same tokens."""
    import asyncio

    engine = await AsyncEngine.start(EngineConfig.from_options(model=model), in_process=in_process)
    try:

        async def last(index: int, sampling: str) -> list[int]:
            assert engine.chat_template is not None
            text = engine.chat_template.render([{"role": "user", "content": QUESTIONS[index]}])
            ids = engine.tokenizer.encode(text, add_special_tokens=False)
            async for output in engine.generate(ids, SAMPLING[sampling](index), request_id=f"{sampling}-{index}"):
                tokens = output.outputs[0].token_ids
            return tokens

        for sampling in SAMPLING:
            found = await asyncio.gather(*(last(i, sampling) for i in range(len(QUESTIONS))))
            assert found == solo[sampling]
    finally:
        await engine.close()


@pytest.mark.parametrize("sampling", SAMPLING)
def test_reading_cached_and_computed_prompts_give_equal_logprobs(sampling: str, model: str) -> None:
    """S8, REL-16: a prefix hit changes what is computed, not what is predicted."""
    with LLM(model) as llm:
        prompt = _prompts(llm)[6]
        params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, ignore_eos=True)
        first, second = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
        assert first.num_cached_tokens == 0
        assert second.num_cached_tokens >= (len(prompt) - 1) // 16 * 16
        for one, other in zip(first.outputs[0].logprobs or [], second.outputs[0].logprobs or [], strict=True):
            assert list(one) == list(other)
            assert all(abs(one[token].logprob - other[token].logprob) < 1e-4 for token in one)
