"""Paged attention on the compiled CPU kernels: float32 activations, pages in float32, bfloat16 or int8.

Pages are [2, P, K, S, D] numbers, of which K pages are stored transposed, [D, S]: only this backend reads them. In int8
a page of a kv head has S x 4 bytes more, the scales of its tokens. On processors that multiply pairs of bfloat16, such
pages hold pairs, [D / 2, S, 2] and [S / 2, D, 2], if D is a multiple of 16, and queries are rounded to bfloat16. The
kernel (ops/cpu/csrc/attention.cpp) says how the work is cut up and why a query's bits do not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quire.attention.int8_rows import SCALE_BYTES
from quire.attention.interface import AttentionBatch, AttentionPlan, AttentionSpec
from quire.ops.cpu.library import PlanRecord
from quire.ops.cpu.program import current_pool, empty
from quire.ops.cpu.table import record

MAX_HEAD_DIM = 256
PAGE_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""`PageFormat` of csrc/attention_pages.h."""


@dataclass(slots=True)
class CpuPlan:
    """A step's rows as the kernels read them; the tensors are kept because the record holds their addresses."""

    record: PlanRecord
    kept: tuple[object, ...] = field(repr=False)


class CpuAttention:
    """The backend of the compiled CPU kernels."""

    name = "cpu"

    def __init__(self) -> None:
        self._slopes: dict[tuple[float, ...], Tensor] = {}

    def kv_shape(
        self, num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[int, ...]:
        """[2, P, K, S, D], or D + 4 in int8; K transposed within the page."""
        if dtype not in PAGE_FORMATS:
            raise ValueError(f"the cpu attention backend has no pages in {dtype}; use float32, bfloat16 or int8")
        if head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim is {head_dim}; the cpu attention backend takes up to {MAX_HEAD_DIM}")
        return (2, num_pages, num_kv_heads, page_size, head_dim + (SCALE_BYTES if dtype == torch.int8 else 0))

    def plan(self, batch: AttentionBatch) -> CpuPlan:
        """The rows as arrays of integers."""
        query_lens = np.array(batch.query_lens, dtype=np.int64)
        if query_lens.sum() != batch.slot_mapping.shape[0]:
            raise ValueError(f"{query_lens.sum()} queries but {batch.slot_mapping.shape[0]} slots")
        first_tokens = query_lens.cumsum() - query_lens
        context_lens = np.ascontiguousarray(batch.context_lens, np.int64)
        tables, slots = batch.page_tables.contiguous(), batch.slot_mapping.contiguous()
        values = PlanRecord(
            num_rows=len(query_lens),
            page_size=batch.page_size,
            table_stride=tables.shape[1],
            first_tokens=first_tokens.ctypes.data,
            query_lens=query_lens.ctypes.data,
            context_lens=context_lens.ctypes.data,
            page_tables=tables.data_ptr(),
            slots=slots.data_ptr(),
        )
        return CpuPlan(values, (first_tokens, query_lens, context_lens, tables, slots))

    def advance(self, plan: AttentionPlan, batch: AttentionBatch) -> AttentionPlan:
        """The same plan: its addresses are those of the batch's numbers."""
        return plan

    def run(self, q: Tensor, k: Tensor, v: Tensor, *, kv: Tensor, spec: AttentionSpec, plan: AttentionPlan) -> Tensor:
        """See `AttentionBackend.run`."""
        if not isinstance(plan, CpuPlan):
            raise TypeError(f"the cpu backend was handed a plan of {type(plan).__name__}")
        if q.dtype != torch.float32:  # the kernels compute in float32 alone
            return self.run(q.float(), k.float(), v.float(), kv=kv, spec=spec, plan=plan).to(q.dtype)
        q, k, v = (_with_packed_heads(x) for x in (q, k, v))
        out = empty(q.shape)
        slopes = self._slopes_of(spec)
        numbers = (
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            kv.shape[1],
            PAGE_FORMATS[kv.dtype],
            spec.window or 0,
            int(spec.alibi_before_scale),
            int(spec.bidirectional),
        )
        op = record("attention", (q, k, v, kv, out, slopes), numbers, (spec.scale, spec.softcap or 0.0))
        current_pool().submit_per_token(op, q.shape[0], plan.record)
        return out

    def _slopes_of(self, spec: AttentionSpec) -> Tensor | None:
        values = spec.alibi_slopes
        if values is None:
            return None
        if values not in self._slopes:
            # By way of numpy: torch.tensor would look to a recording like a computation that it cannot replay.
            self._slopes[values] = torch.from_numpy(np.array(values, dtype=np.float32))
        return self._slopes[values]


def _with_packed_heads(x: Tensor) -> Tensor:
    """x [T, H, D] with the numbers of a token's heads one after the other; tokens may lie apart."""
    if x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2]):
        return x
    return x.contiguous()
