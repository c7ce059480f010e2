"""What a decode step costs besides its kernels: the engine's loop with a clock between its parts.

Rows decode until they are done or the time is up; the medians of their steps count. On a device that queues its work
the time of the kernels is part of `launch`, which waits for them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from quire.base.config import EngineConfig
from quire.base.errors import ConfigError
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.bench.report import table
from quire.engine.build import build_core
from quire.engine.core import EngineCore
from quire.engine.messages import AbortMessage, AddMessage, StepMessage, encode
from quire.runner.model_runner import ModelRunner
from quire.text.grammar import json_schema_grammar

SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
    "temperature": SamplingParams(temperature=0.8, max_tokens=1, ignore_eos=True),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95, max_tokens=1, ignore_eos=True),
    "top_k": SamplingParams(temperature=0.8, top_k=50, top_p=0.95, max_tokens=1, ignore_eos=True),
}

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}
"""What constrained rows write: more of it than any run takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """Which batches to measure, and for how long."""

    rows: tuple[int, ...] = (1, 8, 32, 64)
    sampling: tuple[str, ...] = ("greedy", "top_p")
    prompt_tokens: int = 32
    steps: int = 100
    max_seconds: float = 20.0
    """Per batch."""
    constrained: int = 0
    """Rows of each batch that write JSON under a schema; measured beside the same batch without."""

    def __post_init__(self) -> None:
        """Refuse loads that measure nothing."""
        if not 0 <= self.constrained <= min(self.rows, default=0):
            raise ConfigError(f"constrained is {self.constrained}; it may be from 0 to the fewest rows")
        if min((*self.rows, self.prompt_tokens, self.steps), default=0) < 1 or not self.rows or self.max_seconds <= 0:
            raise ConfigError("rows, prompt_tokens, steps and max_seconds must be above 0")
        unknown = [name for name in self.sampling if name not in SAMPLING]
        if unknown or not self.sampling:
            raise ConfigError(f"sampling names {unknown}; known: {', '.join(SAMPLING)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """The median step of one batch, in seconds."""

    rows: int
    constrained: int
    sampling: str
    steps: int
    whole: float
    kernels: float
    schedule: float
    launch: float
    """Inputs, the call of the kernels and the tokens they drew, without the kernels themselves."""
    commit: float
    message: float
    """Numbers of the engine, and the frame that goes to the front end."""

    @property
    def outside(self) -> float:
        """What is not spent in kernels."""
        return self.schedule + self.launch + self.commit + self.message


def run_steps(config: EngineConfig, load: StepLoad) -> list[StepCost]:
    """Build an engine in this process and measure every batch on it."""
    core, info = build_core(config)
    if max(load.rows) > info.max_num_seqs:
        raise ConfigError(f"{max(load.rows)} rows exceed max_num_seqs, which is {info.max_num_seqs}; raise it")
    longest = info.max_model_len - load.prompt_tokens
    if longest < load.steps + 2:
        raise ConfigError(f"{load.steps} steps after a prompt of {load.prompt_tokens} exceed max_model_len")
    if load.constrained:  # compiled before a batch waits for it
        _measure(core, list(_requests(1, 1, "greedy", load=load, vocabulary=info.vocab_rows, longest=longest)), load)
    costs = []
    for sampling in load.sampling:
        for rows in load.rows:
            for constrained in (0, load.constrained) if load.constrained else (0,):
                drawn = _requests(rows, constrained, sampling, load=load, vocabulary=info.vocab_rows, longest=longest)
                requests = list(drawn)
                costs.append(_measure(core, requests, load, sampling=sampling))
    return costs


def _requests(
    rows: int, constrained: int, sampling: str, *, load: StepLoad, vocabulary: int, longest: int
) -> Iterator[EngineRequest]:
    draw, grammar = random.Random(rows), json_schema_grammar(SCHEMA)
    for index in range(rows):
        yield EngineRequest(
            grammar=grammar if index < constrained else None,
            request_id=f"step-{sampling}-{rows}-{index}",
            prompt_token_ids=[draw.randrange(vocabulary) for _ in range(load.prompt_tokens)],
            params=SAMPLING[sampling],
            max_tokens=longest,  # whoever starts first runs until the grammars of the others are there
            seed=index,
            arrival_time=time.monotonic(),
        )


def _measure(core: EngineCore, requests: list[EngineRequest], load: StepLoad, *, sampling: str = "greedy") -> StepCost:
    core.inbox.put(AddMessage(requests))
    while (stats := core.stats()).num_running < len(requests) or stats.batch_tokens != len(requests):
        if any(output.finish_reason is not None for output in core.advance()):
            raise RuntimeError("a request ended before all of them ran; give a longer max_model_len")
    deadline = time.perf_counter() + load.max_seconds
    steps: list[tuple[float, ...]] = []
    while core.has_work and len(steps) < load.steps and (not steps or time.perf_counter() < deadline):
        steps.append(_timed_step(core))
    core.inbox.put(AbortMessage([request.request_id for request in requests]))
    while core.has_work:
        core.advance()
    kernels, schedule, launch, commit, message = (statistics.median(column) for column in zip(*steps, strict=True))
    return StepCost(
        rows=len(requests),
        constrained=sum(request.grammar is not None for request in requests),
        sampling=sampling,
        steps=len(steps),
        whole=statistics.median(map(sum, steps)),
        kernels=kernels,
        schedule=schedule,
        launch=launch,
        commit=commit,
        message=message,
    )


def _timed_step(core: EngineCore) -> tuple[float, ...]:
    """One step as `EngineCore.step` takes it: seconds of its kernels, and of each part without them."""
    runner = core.runner
    assert isinstance(runner, ModelRunner)
    clock, in_kernels = [time.perf_counter()], runner.kernel_seconds
    work = core.scheduler.schedule()
    assert work is not None, "rows that have not ended can run"
    clock.append(time.perf_counter())
    sampled = runner.launch(work).wait()
    clock.append(time.perf_counter())
    outputs = core.scheduler.commit(work, sampled)
    clock.append(time.perf_counter())
    encode(StepMessage(outputs, core.stats()))
    clock.append(time.perf_counter())
    kernels = runner.kernel_seconds - in_kernels
    schedule, launch, commit, message = (after - before for before, after in pairwise(clock))
    return kernels, schedule, launch - kernels, commit, message


def describe(costs: list[StepCost]) -> str:
    """The costs as a table."""
    header = [
        "sampling",
        "rows",
        "constrained",
        "steps",
        "step ms",
        "kernels",
        "outside",
        "schedule",
        "launch",
        "commit",
        "message",
    ]
    rows = [
        [one.sampling, one.rows, one.constrained, one.steps]
        + [
            f"{1000 * seconds:.3f}"
            for seconds in (
                one.whole, one.kernels, one.outside, one.schedule, one.launch, one.commit, one.message
            )
        ]
        for one in costs
    ]  # fmt: skip
    return table(header, rows)
