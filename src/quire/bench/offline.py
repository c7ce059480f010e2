"""Throughput of the engine inside this process: the same greedy requests one at a time, then all at once.

Both sides come from one run on one engine with the same weights and prompts, so their ratio says what batching is worth
on this machine. The prefix cache is not read, or the second pass would ride on the first. It also compares the texts:
a batch that is faster but answers differently would be no gain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.base.errors import ConfigError
from quire.base.metrics import EngineStats
from quire.base.sampling import SamplingParams
from quire.bench.report import table
from quire.bench.workload import random_prompts

if TYPE_CHECKING:
    from quire.engine.llm import LLM


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineLoad:
    """How much work, and the time after which no new pass starts."""

    num_requests: int = 32
    num_alone: int = 4
    """Requests measured one at a time; the first ones of the same list."""
    input_low: int = 32
    input_high: int = 128
    output_tokens: int = 64
    max_seconds: float = 120.0
    """Requests run one at a time stop being started after half of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse loads that measure nothing."""
        if min(self.num_requests, self.num_alone, self.input_low, self.output_tokens) < 1:
            raise ConfigError("request counts, prompt lengths and output lengths must be at least 1")
        if self.input_high < self.input_low:
            raise ConfigError(f"the longest prompt ({self.input_high}) is below the shortest ({self.input_low})")
        if self.max_seconds <= 0:
            raise ConfigError(f"max_seconds is {self.max_seconds}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """One pass over requests."""

    requests: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    steps: int
    step_seconds: float
    """Wall time inside steps."""
    host_seconds: float
    """Part of it spent in scheduling and bookkeeping."""

    @property
    def output_rate(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens per second."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineResult:
    """Both passes of one run."""

    load: OfflineLoad
    alone: PassResult
    together: PassResult
    equal_outputs: int
    """Of the requests run both ways, how many gave the same tokens."""

    @property
    def speedup(self) -> float:
        """Output tokens per second together over alone."""
        return self.together.output_rate / self.alone.output_rate


def run_offline(llm: LLM, load: OfflineLoad) -> OfflineResult:
    """Run the load both ways on a started engine."""
    info = llm.info
    longest = load.input_high + load.output_tokens
    if longest > info.max_model_len:
        raise ConfigError(
            f"{load.input_high} prompt tokens and {load.output_tokens} output tokens exceed max_model_len "
            f"{info.max_model_len}; ask for shorter ones"
        )
    prompts = random_prompts(
        load.num_requests, low=load.input_low, high=load.input_high, vocab_rows=info.vocab_rows, seed=load.seed
    )
    _run(llm, prompts[:1], load)  # the first request pays for lazy set-up that neither side should carry
    deadline = time.perf_counter() + load.max_seconds / 2
    alone_prompts: list[list[int]] = []
    alone_tokens: list[list[int]] = []
    before, started = llm.stats, time.perf_counter()
    for prompt in prompts[: load.num_alone]:
        alone_tokens += _run(llm, [prompt], load)
        alone_prompts.append(prompt)
        if time.perf_counter() > deadline:
            break
    alone = _pass(alone_prompts, alone_tokens, time.perf_counter() - started, before=before, after=llm.stats)
    before, started = llm.stats, time.perf_counter()
    together_tokens = _run(llm, prompts, load)
    together = _pass(prompts, together_tokens, time.perf_counter() - started, before=before, after=llm.stats)
    equal = sum(a == b for a, b in zip(alone_tokens, together_tokens, strict=False))
    return OfflineResult(load=load, alone=alone, together=together, equal_outputs=equal)


def _run(llm: LLM, prompts: Sequence[list[int]], load: OfflineLoad) -> list[list[int]]:
    """Greedy output tokens of `prompts`, submitted at once."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=load.output_tokens,
        ignore_eos=True,
        detokenize=False,
        skip_reading_prefix_cache=True,
    )
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _pass(
    prompts: Sequence[list[int]],
    tokens: Sequence[list[int]],
    seconds: float,
    *,
    before: EngineStats,
    after: EngineStats,
) -> PassResult:
    return PassResult(
        requests=len(prompts),
        seconds=seconds,
        prompt_tokens=sum(map(len, prompts)),
        output_tokens=sum(map(len, tokens)),
        steps=after.step - before.step,
        step_seconds=after.step_seconds - before.step_seconds,
        host_seconds=after.host_seconds - before.host_seconds,
    )


def describe(result: OfflineResult) -> str:
    """The result as a table and its ratio."""
    rows = [
        [
            name, one.requests, one.seconds, one.requests / one.seconds, one.output_rate, one.total_rate, one.steps,
            1000 * one.step_seconds / max(1, one.steps), 1000 * one.host_seconds / max(1, one.steps),
        ]
        for name, one in (("one at a time", result.alone), ("all at once", result.together))
    ]  # fmt: skip
    header = ["", "requests", "seconds", "req/s", "output tok/s", "total tok/s", "steps", "ms/step", "host ms"]
    return (
        f"{table(header, rows)}\n\n"
        f"batching gives {result.speedup:.2f} times the output tokens per second of one request at a time;\n"
        f"{result.equal_outputs} of {result.alone.requests} requests gave the same tokens both ways"
    )
