"""Paged attention in plain torch, one row after the other: the specification of every other backend.

Pages are [2, P, K, S, D]: K and V, page, kv head, place in the page, head size; int8 pages have rows of D + 4 bytes
(`int8_rows`). A row's result is computed from its own
queries and pages alone, with shapes that do not depend on the batch, so it has the same bits alone and in any batch.
Scores, softmax and the weighted sum are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire import ops
from quire.attention.int8_rows import SCALE_BYTES, from_int8_rows, to_int8_rows
from quire.attention.interface import AttentionBatch, AttentionPlan, AttentionSpec

QUERY_BLOCK = 256
"""Queries that attend at once; bounds the score matrix at H x 256 x context numbers."""


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Some queries of a row and the keys they may see, as ranges within the row's gathered keys."""

    queries: slice
    """Tokens of the step."""
    keys: slice
    visible: Tensor | None
    """[queries, keys] bool; None where every query sees every key of the range."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row under one window: which pages to gather, and its blocks."""

    pages: Tensor
    """[n] int64, in order of position."""
    positions: Tensor
    """[n * S] float32: position of each gathered key."""
    blocks: tuple[QueryBlock, ...]


@dataclass(slots=True)
class ReferencePlan:
    """A step's rows, cut up once per distinct window and shared by the layers that have it."""

    batch: AttentionBatch
    slots: Tensor
    by_reach: dict[tuple[int | None, bool], tuple[RowPlan, ...]] = field(default_factory=dict)
    slopes: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

    def rows(self, spec: AttentionSpec) -> tuple[RowPlan, ...]:
        """The rows as layers with this window, looking back only or both ways, see them."""
        reach = spec.window, spec.bidirectional
        if reach not in self.by_reach:
            planned = _plan_whole_rows(self.batch) if spec.bidirectional else _plan_rows(self.batch, spec.window)
            self.by_reach[reach] = tuple(planned)
        return self.by_reach[reach]

    def slopes_of(self, spec: AttentionSpec) -> Tensor | None:
        """ALiBi slopes [K, H / K, 1, 1] float32, or None."""
        values = spec.alibi_slopes
        if values is None:
            return None
        if values not in self.slopes:
            slopes = torch.tensor(values, dtype=torch.float32, device=self.slots.device)
            self.slopes[values] = slopes.view(spec.num_kv_heads, -1, 1, 1)
        return self.slopes[values]


class ReferenceAttention:
    """The backend that runs everywhere torch does."""

    name = "reference"

    def kv_shape(
        self, num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[int, ...]:
        """[2, P, K, S, D], or D + 4 in int8."""
        return (2, num_pages, num_kv_heads, page_size, head_dim + (SCALE_BYTES if dtype == torch.int8 else 0))

    def plan(self, batch: AttentionBatch) -> ReferencePlan:
        """Check the batch and cut it for layers without a window; other windows are cut when first met."""
        if sum(batch.query_lens) != batch.slot_mapping.shape[0]:
            raise ValueError(f"{sum(batch.query_lens)} queries but {batch.slot_mapping.shape[0]} slots")
        return ReferencePlan(batch, batch.slot_mapping)

    def advance(self, plan: AttentionPlan, batch: AttentionBatch) -> ReferencePlan:
        """A fresh plan: this one cuts up numbers that have changed."""
        return self.plan(batch)

    def run(self, q: Tensor, k: Tensor, v: Tensor, *, kv: Tensor, spec: AttentionSpec, plan: AttentionPlan) -> Tensor:
        """See `AttentionBackend.run`."""
        if not isinstance(plan, ReferencePlan):
            raise TypeError(f"the reference backend was handed a plan of {type(plan).__name__}")
        if kv.dtype == torch.int8:
            k, v = to_int8_rows(k), to_int8_rows(v)
        ops.write_kv(k, v, kv, plan.slots)
        slopes = plan.slopes_of(spec)
        out = torch.empty_like(q)  # [T, H, D]
        for row in plan.rows(spec):
            keys, values = _gather(kv, row.pages)
            for block in row.blocks:
                bias = None if slopes is None else _alibi(slopes, row.positions[block.keys], spec)
                part = _attend(q[block.queries], keys[:, block.keys], spec, bias=bias, visible=block.visible)
                out[block.queries] = _weighted(part, values[:, block.keys])
        return out


def _plan_rows(batch: AttentionBatch, window: int | None) -> Iterator[RowPlan]:
    """Pages before the first key that any query of the row sees are not gathered."""
    size, tables = batch.page_size, batch.page_tables.long()
    start = 0
    for row, (count, context) in enumerate(zip(batch.query_lens, map(int, batch.context_lens), strict=True)):
        first_query = context - count
        lowest = 0 if window is None else max(0, first_query - window + 1)
        first_page, end_page = lowest // size, -(-context // size)
        base = first_page * size
        positions = torch.arange(base, end_page * size, device=tables.device)
        blocks = []
        for done in range(0, count, QUERY_BLOCK):
            stop = min(done + QUERY_BLOCK, count)
            low = 0 if window is None else max(0, first_query + done - window + 1)
            keys = slice(low - base, first_query + stop - base)
            blocks.append(
                QueryBlock(
                    slice(start + done, start + stop),
                    keys,
                    _visible(positions[keys], first_query + done, stop - done, window) if stop - done > 1 else None,
                )
            )
        yield RowPlan(tables[row, first_page:end_page], positions.float(), tuple(blocks))
        start += count


def _plan_whole_rows(batch: AttentionBatch) -> Iterator[RowPlan]:
    """Every query sees all keys of its row."""
    start, tables = 0, batch.page_tables.long()
    for row, (count, context) in enumerate(zip(batch.query_lens, map(int, batch.context_lens), strict=True)):
        num_pages = -(-context // batch.page_size)
        positions = torch.arange(num_pages * batch.page_size, device=tables.device)
        cuts = range(0, count, QUERY_BLOCK)
        queries = (slice(start + done, start + min(done + QUERY_BLOCK, count)) for done in cuts)
        blocks = tuple(QueryBlock(block, slice(0, context), None) for block in queries)
        yield RowPlan(tables[row, :num_pages], positions.float(), blocks)
        start += count


def _visible(keys: Tensor, first_query: int, count: int, window: int | None) -> Tensor:
    """Which keys each of `count` consecutive queries sees: not later ones, nor those out of its window."""
    queries = torch.arange(first_query, first_query + count, device=keys.device).unsqueeze(1)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def _gather(kv: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of some pages as [K, n * S, D] float32, unused places of the last page included."""
    rows = kv.transpose(1, 2).index_select(2, pages).flatten(2, 3)  # [2, K, n * S, D]
    rows = from_int8_rows(rows) if rows.dtype == torch.int8 else rows.float()
    return rows[0], rows[1]


def _alibi(slopes: Tensor, positions: Tensor, spec: AttentionSpec) -> Tensor:
    """What ALiBi adds to the scaled scores: slopes [K, H / K, 1, 1] and positions [C] → [K, H / K, 1, C]."""
    if spec.alibi_before_scale:
        return (slopes.bfloat16() * positions.bfloat16()).float() * spec.scale
    return slopes * positions


def _attend(q: Tensor, keys: Tensor, spec: AttentionSpec, *, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """Softmax of the scores of q [L, H, D] against keys [K, C, D]: [K, H / K, L, C]."""
    length, heads, size = q.shape
    kv_heads = keys.shape[0]
    grouped = q.float().view(length, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)  # [K, H / K, L, D]
    flat = (grouped * spec.scale).reshape(kv_heads, -1, size)  # [K, H / K * L, D]
    scores = torch.matmul(flat, keys.transpose(1, 2)).view(kv_heads, heads // kv_heads, length, -1)
    if spec.softcap is not None:
        scores = ops.softcap(scores, spec.softcap)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1)


def _weighted(probabilities: Tensor, values: Tensor) -> Tensor:
    """Σ p·v over keys: [K, H / K, L, C] and [K, C, D] → [L, H, D]."""
    kv_heads, group, length, _ = probabilities.shape
    out = torch.matmul(probabilities.flatten(1, 2), values)  # [K, H / K * L, D]
    return out.view(kv_heads, group, length, -1).permute(2, 0, 1, 3).flatten(1, 2)
