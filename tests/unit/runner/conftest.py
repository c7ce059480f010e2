"""A tiny model, a runner around it and a driver that plays the scheduler's part by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from quire.attention import select_backend
from quire.attention.interface import AttentionPlan, AttentionSpec
from quire.base.cpu_kernels import are_usable
from quire.base.paging import pages_for
from quire.base.sampling import SamplingParams
from quire.base.step import NewRow, SampledTokens, SchedulerOutput
from quire.models.info import KVLayerSpec
from quire.ops.cpu.program import current_pool
from quire.runner.device import CpuDevice
from quire.runner.input_batch import RunnerLimits
from quire.runner.kv_tensors import allocate
from quire.runner.model_runner import ModelRunner

VOCAB, WIDTH, HEADS, HEAD_DIM, LAYERS = 61, 16, 2, 8, 2
LOGIT_SCALE = 0.15
"""Keeps the distribution broad, so that seeded draws differ from greedy ones."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)


class TinyModel:
    """Embedding, position embedding, two layers of paged attention, tied head: enough for every token to matter."""

    kv_layers = (KVLayerSpec(1, HEAD_DIM),) * LAYERS

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.embedding, self.positions = normal(VOCAB, WIDTH), normal(512, WIDTH)
        self.qkv = [normal((HEADS + 2) * HEAD_DIM, WIDTH) / 4 for _ in range(LAYERS)]
        self.out = [normal(WIDTH, HEADS * HEAD_DIM) / 2 for _ in range(LAYERS)]
        self.backend = select_backend("reference")
        self.spec = AttentionSpec(num_heads=HEADS, num_kv_heads=1, head_dim=HEAD_DIM, scale=HEAD_DIM**-0.5)
        self.num_tokens: list[int] = []
        """Tokens of each forward pass."""
        self.logit_rows: list[int] = []
        """Rows of each call of `logits`."""
        self.before_forward: Callable[[], None] = lambda: None

    def to(self, device: torch.device) -> TinyModel:
        self.embedding, self.positions = self.embedding.to(device), self.positions.to(device)
        self.qkv, self.out = [w.to(device) for w in self.qkv], [w.to(device) for w in self.out]
        return self

    def __call__(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        if not are_usable() or current_pool().recording is None:  # the attempt to record is no step
            self.num_tokens.append(len(token_ids))
        self.before_forward()
        hidden = self.embedding[token_ids] + self.positions[positions]
        for layer, pages in enumerate(kv):
            rows = (hidden @ self.qkv[layer].T).view(len(token_ids), HEADS + 2, HEAD_DIM)
            q, k, v = rows.split([HEADS, 1, 1], dim=1)
            attended = self.backend.run(q, k, v, kv=pages, spec=self.spec, plan=plan)
            hidden = hidden + attended.flatten(1) @ self.out[layer].T
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        self.logit_rows.append(len(hidden))
        return hidden @ self.embedding.T * LOGIT_SCALE

    def dense_logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits of every position [T, V] from one dense pass in float64, written without pages."""
        hidden = (self.embedding[token_ids] + self.positions[: len(token_ids)]).double()
        is_seen = self.embedding.new_ones(len(token_ids), len(token_ids)).tril().bool()
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (hidden @ qkv.double().T).view(len(token_ids), HEADS + 2, HEAD_DIM).split([HEADS, 1, 1], dim=1)
            scores = torch.einsum("thd,sd->hts", q, k[:, 0]) * self.spec.scale
            weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
            hidden = hidden + torch.einsum("hts,sd->thd", weights, v[:, 0]).flatten(1) @ out.double().T
        return hidden @ self.embedding.double().T * LOGIT_SCALE


class Alternating:
    """A constraint that allows one set of tokens, then the next, and so on around."""

    failure = None
    is_complete = False

    def __init__(self, *sets: set[int]) -> None:
        self.sets = sets
        self.num_accepted = 0

    @property
    def allowed(self) -> set[int]:
        return self.sets[self.num_accepted % len(self.sets)]

    def fill(self, address: int, num_bytes: int) -> None:
        bits = sum(1 << token for token in self.allowed)
        ctypes.memmove(address, bits.to_bytes(num_bytes, "little"), num_bytes)

    def accept(self, token_id: int) -> None:
        assert token_id in self.allowed
        self.num_accepted += 1

    def fork(self) -> Alternating:
        raise AssertionError("the runner never forks a constraint")


@dataclass(eq=False)
class Job:
    """One request as the driver keeps it."""

    row: int
    token_ids: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    num_computed: int = 0
    num_in_flight: int = 0
    pages: list[int] = field(default_factory=list)
    is_started: bool = False
    stop_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    constraint: Alternating | None = None
    logprobs: list = field(default_factory=list)
    prompt_logprobs: list = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.token_ids[self.num_prompt :]


class Driver:
    """Plays the scheduler: gives out rows and pages, writes steps, commits answers."""

    def __init__(self, runner: ModelRunner, page_size: int, free_pages: Iterable[int]) -> None:
        self.runner = runner
        self.page_size = page_size
        self.free_pages = list(free_pages)
        self.freed_rows: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self.replacements: list[tuple[int, int, int]] = []
        self.num_steps = 0

    def add(self, row: int, prompt: Sequence[int], params: SamplingParams = GREEDY, *, seed: int = 0, **kw) -> Job:
        num_prompt = kw.pop("num_prompt", len(prompt))
        return Job(row=row, token_ids=list(prompt), num_prompt=num_prompt, params=params, seed=seed, **kw)

    def free(self, job: Job) -> None:
        self.freed_rows.append(job.row)
        self.free_pages += job.pages
        job.pages, job.is_started, job.num_computed = [], False, 0

    def plan(self, parts: dict[Job, int]) -> SchedulerOutput:
        work = SchedulerOutput(step=self.num_steps, rows=[], starts=[], num_scheduled=[], samples=[])
        self.num_steps += 1
        work.freed_rows, self.freed_rows = self.freed_rows, []
        work.page_copies, self.copies = self.copies, []
        work.page_replacements, self.replacements = self.replacements, []
        for job, count in parts.items():
            end = job.num_computed + count
            fresh = [self.free_pages.pop(0) for _ in range(pages_for(end, self.page_size) - len(job.pages))]
            job.pages += fresh
            if not job.is_started:
                job.is_started = True
                work.new_rows.append(
                    NewRow(
                        row=job.row,
                        token_ids=list(job.token_ids),
                        num_prompt_tokens=job.num_prompt,
                        page_ids=list(job.pages),
                        params=job.params,
                        seed=job.seed,
                        stop_ids=job.stop_ids,
                        bad_words=job.bad_words,
                        is_constrained=job.constraint is not None,
                    )
                )
            else:
                work.page_appends += [(job.row, page) for page in fresh]
            work.rows.append(job.row)
            work.starts.append(job.num_computed)
            work.num_scheduled.append(count)
            work.samples.append(end == len(job.token_ids) + job.num_in_flight)
            job.num_computed = end
            job.num_in_flight += work.samples[-1]
            if work.samples[-1] and job.constraint is not None:
                work.constraints.append((job.row, job.constraint))
        return work

    def commit(self, parts: dict[Job, int], sampled: SampledTokens) -> SampledTokens:
        for line, job in enumerate(parts):
            tokens = sampled.token_ids[line]
            job.num_in_flight -= len(tokens)
            job.token_ids += tokens
            for token in tokens if job.constraint is not None else ():
                job.constraint.accept(token)
            if sampled.logprobs is not None:
                job.logprobs += sampled.logprobs[line] or []
            job.prompt_logprobs += sampled.prompt_logprobs.get(line, [])
        return sampled

    def step(self, parts: dict[Job, int]) -> SampledTokens:
        return self.commit(parts, self.runner.launch(self.plan(parts)).wait())

    def run_overlapped(self, jobs: Sequence[Job], num_steps: int) -> None:
        """Prefill all jobs and go on for `num_steps`, each step launched before the one before is committed."""
        parts = {job: len(job.token_ids) for job in jobs}
        in_flight = (parts, self.runner.launch(self.plan(parts)))
        for _ in range(num_steps):
            parts = dict.fromkeys(jobs, 1)
            launched = (parts, self.runner.launch(self.plan(parts)))
            self.commit(in_flight[0], in_flight[1].wait())
            in_flight = launched
        self.commit(in_flight[0], in_flight[1].wait())

    def run(self, jobs: Sequence[Job], num_output: int, *, chunk: int = 1000) -> list[list[int]]:
        """Step all jobs together, at most `chunk` tokens of each at once, until each has its output."""
        while True:
            left = [job for job in jobs if len(job.output) < num_output]
            if not left:
                return [job.output for job in jobs]
            self.step({job: min(chunk, len(job.token_ids) - job.num_computed) for job in left})


@pytest.fixture
def alternating() -> type[Alternating]:
    return Alternating


@pytest.fixture
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def greedy() -> SamplingParams:
    return GREEDY


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    """One thread: tiny tensors gain nothing from more, and a busy machine makes threads wait for each other."""
    before = torch.get_num_threads()
    yield CpuDevice(threads=1)
    torch.set_num_threads(before)


@pytest.fixture
def make_driver(model: TinyModel, device: CpuDevice) -> Callable[..., Driver]:
    """A driver over a fresh runner; `pages` is the order in which pages are given out."""

    def make(*, page_size: int = 8, num_pages: int = 48, pages: Iterable[int] | None = None, rows: int = 8) -> Driver:
        kv = allocate(
            model.kv_layers,
            attention=model.backend,
            num_pages=num_pages,
            page_size=page_size,
            dtype=torch.float32,
            device=device.torch_device,
        )
        limits = RunnerLimits(max_num_seqs=rows, max_model_len=128, page_size=page_size, vocab_size=VOCAB)
        runner = ModelRunner(model, backend=model.backend, device=device, kv=kv, limits=limits)
        driver = Driver(runner, page_size, range(num_pages) if pages is None else pages)
        driver.kv = kv
        return driver

    return make


@pytest.fixture
def solo(make_driver) -> Callable[..., list[int]]:
    """What a prompt yields alone in a fresh runner, prefilled at once."""

    def run(prompt: Sequence[int], num_output: int, params: SamplingParams = GREEDY, **kw) -> list[int]:
        driver = make_driver()
        return driver.run([driver.add(0, prompt, params, **kw)], num_output)[0]

    return run
