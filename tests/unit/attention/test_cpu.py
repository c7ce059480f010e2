"""The CPU kernels' paged attention against the reference: every structure, page size and border of its cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from quire.attention import cpu
from quire.attention.cpu import MAX_HEAD_DIM, CpuAttention
from quire.attention.interface import AttentionBatch, AttentionSpec
from quire.attention.reference import ReferenceAttention
from quire.base.cpu_kernels import BF16_DOTS, instruction_sets
from quire.ops.cpu.program import current_pool, using

GUARD = 96
"""NaN before, between and after tensors."""
BORDERS = (1, 2, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1500)
"""Contexts at the borders of blocks (64) and partitions (256)."""
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
HEADS = [
    (4, 4, 20),
    (6, 2, 64),
    (5, 1, 80),
    (8, 4, 96),
    (2, 2, 128),
    (3, 1, 256),
    (26, 1, 24),
    (71, 1, 32),
    (50, 2, 16),
]
"""Heads, kv heads, head size; 26, 25 and 71 heads to a kv head are more than a tile takes."""
FEATURES = {
    "plain": {},
    "window within a block": {"window": 7},
    "window of blocks": {"window": 130},
    "window of partitions": {"window": 700},
    "window wider than the context": {"window": 5000},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi": True},
    "alibi before scale": {"alibi": True, "alibi_before_scale": True},
    "everything": {"window": 90, "softcap": 2.0, "alibi": True},
}
ROWS = [(1, 1), (1, 63), (1, 64), (1, 65), (7, 7), (23, 70), (1, 513), (5, 515), (30, 30)]
"""Query and context lengths of a batch that mixes decodes and chunks."""


def spec_of(heads, features):
    options = dict(features)
    if options.pop("alibi", False):
        options["alibi_slopes"] = tuple(0.5 ** (1 + head / 4) for head in range(heads[0]))
    return AttentionSpec(
        num_heads=heads[0], num_kv_heads=heads[1], head_dim=heads[2], scale=heads[2] ** -0.5, **options
    )


@dataclass
class Sequences:
    """Queries, keys and values of all positions of some sequences."""

    spec: AttentionSpec
    lengths: list[int]
    q: list[torch.Tensor] = field(default_factory=list)
    k: list[torch.Tensor] = field(default_factory=list)
    v: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(6)
        for parts, heads in ((self.q, self.spec.num_heads), *((p, self.spec.num_kv_heads) for p in (self.k, self.v))):
            for length in self.lengths:
                parts.append(torch.randn(length, heads, self.spec.head_dim, generator=generator))

    def run(self, backend, rows, *, page_size=16, dtype=torch.float32, hidden=math.nan):
        """Outputs per row (sequence, first position, stop) of one step; `hidden` fills what no query may see."""
        spec, needs = self.spec, [-(-stop // page_size) for _, _, stop in rows]
        pages = torch.randperm(sum(needs) + 3, generator=torch.Generator().manual_seed(len(rows))).tolist()
        tables = [[pages.pop() for _ in range(need)] for need in needs]
        shape = backend.kv_shape(sum(needs) + 3, page_size, spec.num_kv_heads, spec.head_dim, dtype)
        # In int8 a scale of four such bytes is NaN.
        unused = -1 if dtype == torch.int8 else math.nan
        kv = torch.full((math.prod(shape) + 2 * GUARD,), unused, dtype=dtype)
        inside = kv[GUARD:-GUARD].view(shape)
        slots = []
        for (sequence, first, stop), table in zip(rows, tables, strict=True):
            places = torch.tensor([table[p // page_size] * page_size + p % page_size for p in range(stop)])
            seen = 0 if spec.window is None else max(0, first - spec.window + 1)
            if dtype == torch.int8:
                self._write(backend, inside, table, page_size, sequence=sequence, seen=seen, stop=first)
            else:
                k, v = (x[sequence][:first].clone() for x in (self.k, self.v))
                k[:seen], v[:seen] = hidden, hidden
                put(backend, inside, places[:first], k, v)
            slots.append(places[first:])
        width = max(needs)
        batch = AttentionBatch(
            query_lens=[stop - first for _, first, stop in rows],
            context_lens=[stop for _, _, stop in rows],
            page_tables=torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32),
            slot_mapping=torch.cat(slots),
            page_size=page_size,
        )
        fused = self._fused(rows)
        out = backend.run(*fused, kv=inside, spec=spec, plan=backend.plan(batch))
        if dtype == torch.int8:
            assert (kv[:GUARD] == -1).all() and (kv[-GUARD:] == -1).all(), "written outside the pages"
            return list(out.split([stop - first for _, first, stop in rows]))
        assert kv[:GUARD].isnan().all() and kv[-GUARD:].isnan().all(), "written outside the pages"
        if spec.window is None and all(x.isfinite().all() for x in (*self.k, *self.v)):
            written, tokens = int((~inside.isnan()).sum()), sum(stop for _, _, stop in rows)
            assert written == tokens * 2 * spec.num_kv_heads * spec.head_dim, "a slot too many or too few is written"
        return list(out.split([stop - first for _, first, stop in rows]))

    def _write(self, backend, kv, table, page_size, *, sequence, seen, stop):
        """K and V of the earlier tokens [seen, stop) by a step of the backend, which alone knows its int8 pages. The
        reference gathers whole pages, so it gets zeros before `seen`."""
        begin = seen if isinstance(backend, CpuAttention) else 0
        if begin == stop:
            return
        batch = AttentionBatch(
            query_lens=[stop - begin],
            context_lens=[stop],
            page_tables=torch.tensor([table], dtype=torch.int32),
            slot_mapping=torch.tensor([table[p // page_size] * page_size + p % page_size for p in range(begin, stop)]),
            page_size=page_size,
        )
        k, v = (x[sequence][begin:stop].clone() for x in (self.k, self.v))
        for x in (k, v):
            x[: seen - begin] = 0.0
        q, narrow = torch.zeros(stop - begin, *self.q[0].shape[1:]), replace(self.spec, window=1)
        backend.run(q, k, v, kv=kv, spec=narrow, plan=backend.plan(batch))

    def _fused(self, rows):
        """q, k, v as views of one product with NaN between the tokens."""
        parts = [torch.cat([x[s][first:stop] for s, first, stop in rows]) for x in (self.q, self.k, self.v)]
        counts = [p.shape[1] for p in parts]
        size = self.spec.head_dim
        whole = torch.full((len(parts[0]), sum(counts) * size + 11), math.nan)
        views = whole[:, 5 : 5 + sum(counts) * size].unflatten(1, (-1, size)).split(counts, dim=1)
        for view, part in zip(views, parts, strict=True):
            view.copy_(part)
        return views


def are_paired(head_dim, dtype):
    """Whether the kernels in use multiply pairs of bfloat16 in such pages (csrc/attention_dots.h)."""
    return current_pool().instruction_set in BF16_DOTS and dtype == torch.bfloat16 and head_dim % 16 == 0


def put(backend, kv, places, k, v):
    """K and V [n, K, D] of some slots straight into pages [2, P, K, S, D], however the backend lays them out."""
    pages, heads, size, head_dim = kv.shape[1:]
    page, at, k, v = places // size, places % size, k.to(kv.dtype), v.to(kv.dtype)
    if not isinstance(backend, CpuAttention):
        kv[0][page, :, at], kv[1][page, :, at] = k, v
    elif are_paired(head_dim, kv.dtype):
        kv[0].view(pages, heads, head_dim // 2, size, 2)[page, :, :, at] = k.unflatten(2, (-1, 2))
        kv[1].view(pages, heads, size // 2, head_dim, 2)[page, :, at // 2, :, at % 2] = v
    else:
        kv[0].view(pages, heads, head_dim, size)[page, :, :, at] = k
        kv[1][page, :, at] = v


def tolerance_of(spec, dtype):
    """Against the reference on the same pages: products of pairs round queries and weights to bfloat16 as well."""
    return 2e-2 if are_paired(spec.head_dim, dtype) else 4e-6


def assert_close(actual, expected, tolerance=4e-6):
    for row, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        difference = (ours - theirs).abs().max().item()
        assert difference <= tolerance * max(1.0, theirs.abs().max().item()), f"row {row} differs by {difference}"


@pytest.fixture(params=instruction_sets() or ("none",))
def isa(request):
    if request.param == "none":
        pytest.skip("the kernels are not built")
    return request.param


@pytest.fixture
def kernels(isa, pool_of, monkeypatch):
    """The backend on one instruction set; its results lie in guarded memory."""
    kept = []

    def guarded(shape, dtype=torch.float32):
        whole = torch.full((math.prod(shape) + 2 * GUARD,), math.nan, dtype=dtype)
        kept.append(whole)
        return whole[GUARD:-GUARD].view(tuple(shape))

    monkeypatch.setattr(cpu, "empty", guarded)
    with using(pool_of(isa, 2)):
        yield CpuAttention()
    for whole in kept:
        assert whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all(), "written outside the result"


def mixed(rows=ROWS):
    return [context for _, context in rows], [(i, context - count, context) for i, (count, context) in enumerate(rows)]


@pytest.mark.parametrize(("head_dim", "dtype"), [(40, torch.float32), (40, torch.int8), (48, torch.bfloat16)])
@pytest.mark.parametrize("features", FEATURES)
def test_decodes_and_chunks_in_one_batch_are_the_references(kernels, features, head_dim, dtype):
    """S14: NaN in unused pages, in unused slots, before windows, between tokens and around the result."""
    lengths, rows = mixed()
    sequences = Sequences(spec_of((6, 2, head_dim), FEATURES[features]), lengths)
    expected = sequences.run(ReferenceAttention(), rows, dtype=dtype, hidden=0.0)
    assert_close(sequences.run(kernels, rows, dtype=dtype), expected, tolerance_of(sequences.spec, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_every_layout_of_heads_and_type_of_pages_is_the_references(kernels, heads, dtype):
    """S11, S14"""
    lengths, rows = mixed([(1, 66), (9, 9), (13, 80)])
    sequences = Sequences(spec_of(heads, {"alibi": True, "window": 71}), lengths)
    expected = sequences.run(ReferenceAttention(), rows, dtype=dtype, hidden=0.0)
    assert_close(sequences.run(kernels, rows, dtype=dtype), expected, tolerance_of(sequences.spec, dtype))


@pytest.mark.parametrize("features", ["plain", "everything"])
def test_contexts_at_the_borders_of_blocks_and_partitions_are_the_references(kernels, features):
    sequences = Sequences(spec_of((3, 1, 32), FEATURES[features]), list(BORDERS))
    rows = [(i, context - 1, context) for i, context in enumerate(BORDERS)]
    rows += [(i, max(0, context - 5), context) for i, context in enumerate(BORDERS) if context > 1000]
    assert_close(sequences.run(kernels, rows), sequences.run(ReferenceAttention(), rows, hidden=0.0))


@pytest.mark.parametrize(
    ("features", "dtype", "head_dim"),
    [
        ("everything", torch.float32, 24),
        ("plain", torch.bfloat16, 24),
        ("everything", torch.bfloat16, 80),
        ("everything", torch.int8, 24),
        ("plain", torch.int8, 24),
        pytest.param("plain", torch.float32, 24, marks=pytest.mark.slow),
        pytest.param("window of partitions", torch.float32, 24, marks=pytest.mark.slow),
        pytest.param("window of partitions", torch.bfloat16, 32, marks=pytest.mark.slow),
    ],
)
def test_a_query_has_the_same_bits_alone_in_any_batch_chunk_page_size_and_number_of_threads(
    isa, pool_of, features, dtype, head_dim
):
    """REL-15, S24: what a query's neighbours are leaves no trace."""
    spec, lengths = spec_of((6, 2, head_dim), FEATURES[features]), [600, 90, 1100, 17]
    sequences, backend = Sequences(spec, lengths), CpuAttention()
    picked = [(0, 0), (0, 63), (0, 64), (0, 511), (0, 512), (0, 599), (1, 40), (2, 1023), (2, 1024), (2, 1099), (3, 16)]
    with using(pool_of(isa, 1)):
        alone = {p: sequences.run(backend, [(p[0], p[1], p[1] + 1)], dtype=dtype)[0] for p in picked}

    def compare(rows, results):
        for (sequence, first, stop), result in zip(rows, results, strict=True):
            for place in picked:
                if place[0] == sequence and first <= place[1] < stop:
                    assert torch.equal(result[place[1] - first], alone[place][0]), (place, first, stop)

    ways = [
        (1, 16, [(i, 0, length) for i, length in enumerate(lengths)]),  # whole sequences
        (2, 8, [(2, 1000, 1100), (0, 500, 600), (1, 39, 41), (3, 0, 17)]),  # later chunks, other pages
        (2, 32, [(i, p, p + 1) for i, p in picked]),  # decodes
        (1, 64, [(0, 510, 513), (2, 1020, 1025), (0, 60, 66), (1, 0, 90)]),
        (2, 128, [(0, 0, 64), (2, 1023, 1100), (0, 64, 512), (0, 512, 600)]),
    ]
    for threads, page_size, rows in ways:
        with using(pool_of(isa, threads)):
            compare(rows, sequences.run(backend, rows, page_size=page_size, dtype=dtype))


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize(("head_dim", "dtype"), [*((20, dtype) for dtype in DTYPES), (64, torch.bfloat16)])
def test_every_page_size_is_the_references(kernels, page_size, head_dim, dtype):
    """S11: contexts that end before, at and after a page's end."""
    lengths, rows = mixed([(1, page_size - 1), (3, page_size), (1, page_size + 1), (9, 3 * page_size + 2)])
    sequences = Sequences(spec_of((4, 2, head_dim), {}), lengths)
    ours = sequences.run(kernels, rows, page_size=page_size, dtype=dtype)
    expected = sequences.run(ReferenceAttention(), rows, page_size=page_size, dtype=dtype)
    assert_close(ours, expected, tolerance_of(sequences.spec, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_stay_in_their_sequence(kernels, bad, dtype):
    """REL-15: one request's NaN is not another's."""
    lengths, rows = mixed([(1, 70), (20, 20), (1, 30)])
    spec = spec_of((4, 2, 16), {})
    clean = Sequences(spec, lengths).run(kernels, rows, dtype=dtype)
    spoilt = Sequences(spec, lengths)
    spoilt.k[1][3] = bad
    spoilt.v[0][5] = bad
    ours = spoilt.run(kernels, rows, dtype=dtype)
    assert torch.equal(ours[2], clean[2])
    assert not ours[0].isfinite().any()
    assert not ours[1][3:].isfinite().any()


def test_scores_far_apart_and_far_from_zero_neither_overflow_nor_vanish(kernels):
    lengths, rows = mixed([(1, 600), (4, 4)])
    sequences = Sequences(spec_of((2, 1, 32), {}), lengths)
    for k in sequences.k:
        k *= 40.0
    sequences.k[0][0] *= 30.0
    assert_close(sequences.run(kernels, rows), sequences.run(ReferenceAttention(), rows), 2e-4)


def test_a_step_without_tokens_computes_nothing(kernels):
    spec = spec_of((2, 1, 16), {})
    batch = AttentionBatch(
        query_lens=[],
        context_lens=[],
        page_tables=torch.zeros(0, 0, dtype=torch.int32),
        slot_mapping=torch.zeros(0, dtype=torch.int64),
        page_size=16,
    )
    q, k = torch.zeros(0, 2, 16), torch.zeros(0, 1, 16)
    kv = torch.zeros(kernels.kv_shape(2, 16, 1, 16))
    assert kernels.run(q, k, k, kv=kv, spec=spec, plan=kernels.plan(batch)).shape == (0, 2, 16)


@pytest.mark.parametrize(("head_dim", "dtype"), [(40, torch.float32), (48, torch.bfloat16)])
def test_few_long_rows_have_the_bits_of_one_thread(isa, pool_of, head_dim, dtype):
    """REL-15: with fewer tiles than threads can share evenly, partitions are shared out instead."""
    lengths, rows = mixed([(1, 1400), (3, 700)])
    sequences, backend = Sequences(spec_of((3, 1, head_dim), {}), lengths), CpuAttention()
    with using(pool_of(isa, 1)):
        expected = sequences.run(backend, rows, dtype=dtype)
    for threads in (2, 3):
        for _ in range(8):  # who ends a tile's last partition differs from run to run
            with using(pool_of(isa, threads)):
                assert all(map(torch.equal, sequences.run(backend, rows, dtype=dtype), expected))


@pytest.mark.parametrize(
    ("features", "dtype", "page_size"),
    [("plain", torch.bfloat16, 16), ("plain", torch.float32, 8), ("window of blocks", torch.int8, 64)],
)
def test_many_decodes_with_chunks_among_them_have_the_bits_they_have_alone(isa, pool_of, features, dtype, page_size):
    """REL-15: several decodes are one task, and each but the last fetches the pages of the one after it."""
    decodes = [(1, 1 + 37 * i % 331) for i in range(30)]
    lengths, rows = mixed([*decodes[:11], (9, 200), *decodes[11:25], (2, 2), *decodes[25:]])
    sequences, backend = Sequences(spec_of((6, 2, 32), FEATURES[features]), lengths), CpuAttention()
    with using(pool_of(isa, 1)):
        alone = [sequences.run(backend, [row], dtype=dtype, page_size=page_size)[0] for row in rows]
    for threads in (1, 2, 3):
        with using(pool_of(isa, threads)):
            together = sequences.run(backend, rows, dtype=dtype, page_size=page_size)
        assert all(map(torch.equal, together, alone))


def test_pages_in_a_type_that_the_kernels_do_not_read_are_refused():
    with pytest.raises(ValueError, match=r"no pages in torch.float16; use float32, bfloat16 or int8"):
        CpuAttention().kv_shape(4, 16, 1, 16, torch.float16)


def test_heads_larger_than_the_kernels_take_are_refused():
    with pytest.raises(ValueError, match=f"head_dim is {MAX_HEAD_DIM + 1}; the cpu attention backend takes up to 256"):
        CpuAttention().kv_shape(4, 16, 1, MAX_HEAD_DIM + 1)


def test_a_plan_whose_counts_disagree_or_of_another_backend_is_refused():
    spec = spec_of((2, 1, 16), {})
    batch = AttentionBatch(
        query_lens=[2],
        context_lens=[2],
        page_tables=torch.zeros(1, 1, dtype=torch.int32),
        slot_mapping=torch.zeros(3, dtype=torch.int64),
        page_size=16,
    )
    with pytest.raises(ValueError, match="2 queries but 3 slots"):
        CpuAttention().plan(batch)
    plan = ReferenceAttention().plan(replace(batch, query_lens=[3]))
    q = torch.zeros(3, 2, 16)
    with pytest.raises(TypeError, match="handed a plan of ReferencePlan"):
        CpuAttention().run(q, q[:, :1], q[:, :1], kv=q, spec=spec, plan=plan)
