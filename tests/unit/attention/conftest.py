"""Paged batches with known contents, and attention written out in float64 over contiguous K and V.

A new backend joins these tests by one entry in `BACKENDS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from quire.attention import select_backend
from quire.attention.interface import AttentionBatch, AttentionSpec
from quire.base.cpu_kernels import instruction_sets
from quire.ops.cpu.program import Pool, using

BACKENDS = ("reference", *(f"kernels {name}" for name in instruction_sets()))
"""Names, and for the CPU kernels the instruction set."""

HEADS = {"multi-head": (4, 4, 16), "grouped": (6, 2, 8), "multi-query": (3, 1, 32)}
FEATURES = {
    "plain": {},
    "window": {"window": 5},
    "window wider than the page": {"window": 37},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "alibi before scale": {"alibi": True, "alibi_before_scale": True},
    "window, softcap and alibi": {"window": 11, "softcap": 3.0, "alibi": True},
}
SHAPES = {
    "one token alone": [(1, 1)],
    "prefill": [(23, 23), (1, 1), (64, 64)],
    "decode": [(1, 9), (1, 64), (1, 65), (1, 2)],
    "later chunk": [(16, 48), (5, 70)],
    "mixed": [(1, 40), (17, 17), (7, 40), (1, 1), (1, 16)],
}
"""Name → (query length, context length) per row."""


def make_spec(heads, features):
    num_heads, num_kv_heads, head_dim = heads
    options = dict(features)
    if options.pop("alibi", False):
        options["alibi_slopes"] = tuple(0.5 ** (head + 1) for head in range(num_heads))
    return AttentionSpec(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=head_dim**-0.5, **options
    )


@dataclass
class Case:
    """One step over rows whose earlier tokens are already in their pages; unused places hold `filler`."""

    spec: AttentionSpec
    rows: list[tuple[int, int]]
    page_size: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    queries: list[torch.Tensor]

    def run(self, backend, *, order=0, filler=math.nan, chosen=None, page_dtype=None):
        """The backend's output per row, for all rows or for the `chosen` ones, with pages placed in a random order."""
        chosen = list(range(len(self.rows))) if chosen is None else chosen
        needs = [-(-self.rows[i][1] // self.page_size) for i in chosen]
        places = torch.randperm(sum(needs) + 4, generator=torch.Generator().manual_seed(order)).tolist()
        tables = [[places.pop() for _ in range(need)] for need in needs]
        spec = self.spec
        dtype = page_dtype or self.keys[0].dtype
        shape = backend.kv_shape(sum(needs) + 4, self.page_size, spec.num_kv_heads, spec.head_dim, dtype)
        kv = torch.full(shape, filler, dtype=dtype)
        slots = [self._slots(table, *self.rows[i]) for i, table in zip(chosen, tables, strict=True)]
        self._write_earlier_tokens(backend, kv, chosen, tables)
        batch = AttentionBatch(
            query_lens=[self.rows[i][0] for i in chosen],
            context_lens=[self.rows[i][1] for i in chosen],
            page_tables=padded(tables),
            slot_mapping=torch.cat(slots),
            page_size=self.page_size,
        )
        new = [slice(context - count, context) for count, context in (self.rows[i] for i in chosen)]
        k, v = (torch.cat([t[i][span] for i, span in zip(chosen, new, strict=True)]) for t in (self.keys, self.values))
        q = torch.cat([self.queries[i] for i in chosen])
        out = backend.run(q, k, v, kv=kv, spec=spec, plan=backend.plan(batch))
        assert out.shape == q.shape and out.dtype == q.dtype
        return list(out.split([self.rows[i][0] for i in chosen]))

    def _slots(self, table, count, context):
        positions = range(context - count, context)
        return torch.tensor([table[p // self.page_size] * self.page_size + p % self.page_size for p in positions])

    def _write_earlier_tokens(self, backend, kv, chosen, tables):
        """One step per row, as the engine would have run before this one."""
        for i, table in zip(chosen, tables, strict=True):
            count, context = self.rows[i]
            earlier = context - count
            if earlier == 0:
                continue
            batch = AttentionBatch(
                query_lens=[earlier],
                context_lens=[earlier],
                page_tables=padded([table]),
                slot_mapping=self._slots(table, earlier, earlier),
                page_size=self.page_size,
            )
            q = torch.zeros(earlier, self.spec.num_heads, self.spec.head_dim, dtype=kv.dtype)
            k, v = self.keys[i][:earlier], self.values[i][:earlier]
            backend.run(q, k, v, kv=kv, spec=self.spec, plan=backend.plan(batch))

    def expected(self):
        """Attention over contiguous K and V, one score at a time, per row."""
        return [
            contiguous(self.spec, self.queries[i].double(), self.keys[i].double(), self.values[i].double())
            for i in range(len(self.rows))
        ]


def padded(tables):
    width = max(map(len, tables))
    return torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32)


def contiguous(spec, q, k, v):
    """q [L, H, D] at the last L positions of k, v [C, K, D]."""
    group, first = spec.num_heads // spec.num_kv_heads, k.shape[0] - q.shape[0]
    out = torch.empty_like(q)
    for i in range(q.shape[0]):
        position = first + i
        low = 0 if spec.window is None else max(0, position - spec.window + 1)
        seen = torch.arange(low, position + 1)
        for head in range(spec.num_heads):
            scores = k[seen, head // group] @ q[i, head] * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            if spec.alibi_slopes is not None:
                scores = scores + alibi(spec, head, seen)
            weights = torch.exp(scores - scores.max())
            out[i, head] = (weights / weights.sum()) @ v[seen, head // group]
    return out


def alibi(spec, head, positions):
    if not spec.alibi_before_scale:
        return spec.alibi_slopes[head] * positions
    slope = torch.tensor(spec.alibi_slopes[head]).bfloat16()
    return (slope * positions.bfloat16()).double() * spec.scale


@pytest.fixture(scope="session")
def pool_of():
    """The pool of an instruction set with so many threads, made once."""
    pools = {}

    def find(instruction_set, threads):
        key = instruction_set, threads
        if key not in pools:
            pools[key] = Pool(threads, instruction_set)
        return pools[key]

    return find


@pytest.fixture(params=BACKENDS)
def backend(request, pool_of):
    """Every attention backend."""
    name, _, instruction_set = request.param.partition(" ")
    if not instruction_set:
        yield select_backend(name)
        return
    with using(pool_of(instruction_set, 2)):
        yield select_backend(name)


@pytest.fixture
def make_case():
    """Build a case: heads and features by name, rows by name or list."""

    def make(*, heads="grouped", features="plain", rows="mixed", page_size=16, dtype=torch.float32):
        generator = torch.Generator().manual_seed(3)
        spec = make_spec(HEADS[heads], FEATURES[features])
        rows = SHAPES[rows] if isinstance(rows, str) else rows

        def random(count, heads):
            return torch.randn(count, heads, spec.head_dim, generator=generator).to(dtype)

        keys, values = ([random(context, spec.num_kv_heads) for _, context in rows] for _ in range(2))
        return Case(spec, rows, page_size, keys, values, [random(count, spec.num_heads) for count, _ in rows])

    return make
