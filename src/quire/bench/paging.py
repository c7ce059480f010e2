"""What paging costs: one attention step over pages against the same step over contiguous memory, and by page size.

Both sides attend with the same queries over the same keys and values of one layer. The contiguous side is torch's own
attention over dense tensors, which a server could only use if it reserved the longest length for every request; the
paged side is an attention backend, with pages in order and with pages scattered over the pool. Variants take turns
within a round, and each one's fastest round counts: other work on the machine only ever adds time.

The allocator is timed beside them: what `KVCacheManager` does on the host in a step in which every row decodes a token.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.attention import select_backend
from quire.attention.interface import AttentionBackend, AttentionBatch, AttentionSpec
from quire.base.errors import ConfigError
from quire.base.request import Request
from quire.base.sampling import SamplingParams
from quire.bench.report import table
from quire.cache.manager import KVCacheManager

_ALLOCATOR_ROUNDS = 10
"""Rounds of the allocator's measurement; each one adds a page to every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """One layer's decode step: R rows that each hold `context` tokens and compute the last one."""

    rows: int = 16
    context: int = 512
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse shapes attention does not have."""
        if min(self.rows, self.num_heads, self.num_kv_heads, self.head_dim) < 1 or self.context < 2:
            raise ConfigError("rows, heads and head size must be at least 1, and the context at least 2 tokens")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} kv heads evenly")

    @property
    def spec(self) -> AttentionSpec:
        """The layer's structure for a backend."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSizeResult:
    """One page size; seconds are those of the fastest of the measured attention steps."""

    page_size: int
    contiguous_seconds: float
    in_order_seconds: float
    scattered_seconds: float
    largest_difference: float
    """Largest absolute difference between paged and contiguous outputs."""
    wasted_tokens: float
    """Mean unused places in a request's last page, over lengths drawn evenly up to the context."""
    pages_per_request: int
    allocator_seconds: float
    """Host time of the page bookkeeping of one decode step: mean over as many steps as fill a page."""

    @property
    def ratio(self) -> float:
        """Scattered pages over contiguous memory, same round, same shapes."""
        return self.scattered_seconds / self.contiguous_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PagingResult:
    """All page sizes of one run."""

    shape: AttentionShape
    backend: str
    sizes: list[PageSizeResult]


class PagedStep:
    """A backend with its pages filled, ready to run the same decode step again and again."""

    def __init__(self, backend: AttentionBackend, shape: AttentionShape, page_size: int, *, scattered: bool) -> None:
        self._backend = backend
        self._spec = shape.spec
        per_row = -(-shape.context // page_size)
        order = list(range(shape.rows * per_row))
        if scattered:
            random.Random(0).shuffle(order)
        self._tables = torch.tensor(order, dtype=torch.int32).view(shape.rows, per_row)
        self._page_size = page_size
        dtype: torch.dtype = getattr(torch, shape.dtype)
        dims = backend.kv_shape(len(order), page_size, shape.num_kv_heads, shape.head_dim, dtype)
        self._kv = torch.zeros(dims, dtype=dtype)
        self._batch = self._batch_of([1] * shape.rows, shape.context)

    def _batch_of(self, query_lens: list[int], context: int) -> AttentionBatch:
        slots = [
            int(self._tables[row, position // self._page_size]) * self._page_size + position % self._page_size
            for row, length in enumerate(query_lens)
            for position in range(context - length, context)
        ]
        return AttentionBatch(
            query_lens=query_lens,
            context_lens=[context] * len(query_lens),
            page_tables=self._tables,
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            page_size=self._page_size,
        )

    def fill(self, k: Tensor, v: Tensor) -> None:
        """Write k, v [R, L, K, D] into the pages, the way a prefill does."""
        rows, length = k.shape[:2]
        plan = self._backend.plan(self._batch_of([length] * rows, length))
        queries = torch.zeros(rows * length, self._spec.num_heads, self._spec.head_dim, dtype=k.dtype)
        self._backend.run(queries, k.flatten(0, 1), v.flatten(0, 1), kv=self._kv, spec=self._spec, plan=plan)

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One decode step: q [R, H, D] and the new token's k, v [R, K, D]; returns [R, H, D]."""
        plan = self._backend.plan(self._batch)
        return self._backend.run(q, k, v, kv=self._kv, spec=self._spec, plan=plan)


class ContiguousStep:
    """The same step over dense K and V [R, K, L, D], each row's memory in one piece."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self._k = k.transpose(1, 2).contiguous()
        self._v = v.transpose(1, 2).contiguous()

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One decode step; arguments and result as in `PagedStep.run`."""
        self._k[:, :, -1] = k
        self._v[:, :, -1] = v
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q.unsqueeze(2), self._k, self._v, enable_gqa=True).squeeze(2)


def run_paging(
    shape: AttentionShape,
    page_sizes: tuple[int, ...],
    *,
    backend: str = "cpu",
    rounds: int = 30,
    max_seconds: float = 60.0,
) -> PagingResult:
    """Measure every page size; at most `rounds` rounds and `max_seconds` seconds altogether."""
    chosen = select_backend(backend)
    share = max_seconds / max(1, len(page_sizes))
    sizes = [_measure(chosen, shape, size, rounds=rounds, max_seconds=share) for size in page_sizes]
    return PagingResult(shape=shape, backend=chosen.name, sizes=sizes)


def _measure(
    backend: AttentionBackend, shape: AttentionShape, page_size: int, *, rounds: int, max_seconds: float
) -> PageSizeResult:
    draw = torch.Generator().manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def tensor(*dims: int) -> Tensor:
        return torch.randn(*dims, generator=draw).to(dtype)

    k, v = (tensor(shape.rows, shape.context, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    q = tensor(shape.rows, shape.num_heads, shape.head_dim)
    paged = {
        name: PagedStep(backend, shape, page_size, scattered=name == "scattered") for name in ("order", "scattered")
    }
    for step in paged.values():
        step.fill(k, v)
    steps: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"contiguous": ContiguousStep(k, v).run}
    steps |= {name: step.run for name, step in paged.items()}
    arguments = (q, k[:, -1], v[:, -1])
    outputs = {name: run(*arguments).float() for name, run in steps.items()}
    turns = {name: functools.partial(run, *arguments) for name, run in steps.items()}
    seconds = _take_turns(turns, rounds=rounds, max_seconds=max_seconds)
    lengths = random.Random(0).choices(range(1, shape.context + 1), k=1000)
    return PageSizeResult(
        page_size=page_size,
        contiguous_seconds=seconds["contiguous"],
        in_order_seconds=seconds["order"],
        scattered_seconds=seconds["scattered"],
        largest_difference=float((outputs["scattered"] - outputs["contiguous"]).abs().max()),
        wasted_tokens=statistics.fmean(-length % page_size for length in lengths),
        pages_per_request=-(-shape.context // page_size),
        allocator_seconds=allocator_seconds(shape.rows, shape.context, page_size, rounds=rounds),
    )


def allocator_seconds(rows: int, context: int, page_size: int, *, rounds: int) -> float:
    """Mean seconds per decode step of allocating and committing one token for each of `rows` requests.

    The requests hold `context` tokens at first. A round takes `page_size` steps, in which each request opens one page
    and publishes one; the fastest of at most `rounds` rounds counts.
    """
    rounds = min(rounds, _ALLOCATOR_ROUNDS)
    num_pages = rows * (-(-context // page_size) + rounds + 1)
    cache = KVCacheManager(num_pages, page_size)
    requests = [_request(row, context) for row in range(rows)]
    for request in requests:
        cache.allocate(request, context)
        request.num_computed_tokens = context
        cache.commit(request, context)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(page_size):
            _decode(cache, requests)
        best = min(best, time.perf_counter() - began)
    return best / page_size


def _request(row: int, context: int) -> Request:
    return Request(
        request_id=f"r{row}",
        index=0,
        params=SamplingParams(max_tokens=1),
        token_ids=[row] * context,
        num_prompt_tokens=context,
        max_tokens=1,
        seed=0,
        arrival_time=0.0,
    )


def _decode(cache: KVCacheManager, requests: Sequence[Request]) -> None:
    """The page bookkeeping of one step: a token more for every request."""
    for request in requests:
        request.token_ids.append(1)
        allocation = cache.allocate(request, len(request.token_ids))
        assert allocation is not None, "the pool was made for this many steps"
        request.num_computed_tokens = len(request.token_ids)
        cache.commit(request, request.num_computed_tokens)


def _take_turns(runs: Mapping[str, Callable[[], object]], *, rounds: int, max_seconds: float) -> dict[str, float]:
    """Seconds of each function in its fastest round; every one runs once per round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    deadline = time.perf_counter() + max_seconds
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
        if time.perf_counter() > deadline:
            break
    return {name: min(values) for name, values in taken.items()}


def describe(result: PagingResult) -> str:
    """The result as a table."""
    shape = result.shape
    rows = [
        [
            str(one.page_size), one.contiguous_seconds * 1000, one.in_order_seconds * 1000,
            one.scattered_seconds * 1000, one.ratio, one.wasted_tokens, one.pages_per_request,
            one.allocator_seconds * 1e6, f"{one.largest_difference:.1e}",
        ]
        for one in result.sizes
    ]  # fmt: skip
    header = ["page size", "contiguous ms", "in order ms", "scattered ms", "ratio", "waste", "pages"]
    header += ["allocator us", "difference"]
    return (
        f"one decode step of one layer: {shape.rows} rows x {shape.context} tokens, {shape.num_heads} heads over "
        f"{shape.num_kv_heads} kv heads x {shape.head_dim}, {shape.dtype}, backend {result.backend}\n\n"
        f"{table(header, rows)}\n\n"
        "ratio: scattered pages over contiguous memory. waste: mean unused tokens in a request's last page.\n"
        "pages: of a request of the full length. allocator: host time per step for the pages of all rows.\n"
        "difference: largest between paged and contiguous output."
    )
