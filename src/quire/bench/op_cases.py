"""What `quire bench ops` measures: every operation of a decoder layer, with what it must at least read and compute.

Weights and pages come in as many copies as it takes to be several times larger than the last cache, and are used in
turn, because in a real step all other layers come in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from quire import ops
from quire.attention import select_backend
from quire.attention.cpu import CpuPlan
from quire.attention.interface import AttentionBatch
from quire.bench.op_shapes import MatrixShape, OpShapes
from quire.models.info import KVLayerSpec
from quire.ops import sampling
from quire.ops.cpu.library import PlanRecord
from quire.ops.cpu.weights import PackedMatrix, packed_bytes
from quire.runner.kv_tensors import allocate

KINDS = ("linear", "attention", "experts", "rows")
"""Groups of operations: products with weights, attention, mixtures of experts, what works row by row."""
KV_DTYPES = ("float32", "bfloat16")
MAX_HEAD_ROWS = 64
"""Rows that the head and the choice of a token are measured with: only sampled rows come to them."""
DECODE_ROWS = (1, 8, 32)
PREFILL_TOKENS = 512
_PAGE_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an operation cannot do without."""

    operations: float = 0.0
    """Two per product; 0 where arithmetic is not what it costs."""
    precision: str = "float32"
    """Of the weights, which says what arithmetic would do: a key of `FORMATS`."""
    memory_bytes: float = 0.0
    """Weights and pages, which come from memory."""
    cache_bytes: float = 0.0
    """Activations, which the operation before left in a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation at one size, ready to be run on whatever pool is in use."""

    op: str
    shape: str
    precision: str
    """Of weights, or of keys and values; empty where there are none."""
    rows: int
    context: int = 0
    work: Work
    calls: Sequence[Callable[[], object]]
    """The same operation on different weights or pages, all of which together no cache holds."""
    tokens: int
    """Rows of the step that the calls are recorded for."""
    plan: PlanRecord | None = None


Group = Callable[[], Iterator[Case]]
"""Cases that share their weights, which are made when the group begins and let go of when it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which cases to run."""

    kinds: tuple[str, ...]
    formats: tuple[str, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]


def groups_of(shapes: OpShapes, selection: Selection) -> list[tuple[str, Group]]:
    """The groups of a selection by name, in the order they are run."""
    found: list[tuple[str, Group]] = []
    if "linear" in selection.kinds:
        head = MatrixShape("head", shapes.vocab_rows, shapes.hidden_size)
        head_rows = tuple(rows for rows in selection.rows if rows <= MAX_HEAD_ROWS)
        for matrix, rows in (*((matrix, selection.rows) for matrix in shapes.matrices), (head, head_rows)):
            # A model's head and token table hold eight bits where its layers hold four.
            formats = [name for name in selection.formats if matrix is not head or name != "int4"]
            found += [(f"{matrix} {name}", partial(_linear, matrix, name, rows)) for name in formats if rows]
    if "attention" in selection.kinds:
        for dtype in KV_DTYPES:
            for context in selection.contexts:
                found += [(f"attention {dtype} {context}", partial(_attention, shapes, dtype, context))]
    if "experts" in selection.kinds and shapes.experts is not None:
        for name in selection.formats:
            found += [(f"experts {name}", partial(_experts, shapes, name, selection.rows))]
    if "rows" in selection.kinds:
        found += [("row by row", partial(_row_by_row, shapes, selection.rows))]
    return found


def last_cache_bytes() -> int:
    """Bytes of the largest cache, as Linux tells it; 32 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=32 << 20)


def working_set_bytes() -> int:
    """Bytes that all copies have together: eight times the last cache, which keeps a part of what comes round again;
    less where that cache is huge."""
    cache = last_cache_bytes()
    return max(2 * cache, min(8 * cache, 1 << 30))


def _num_copies(num_bytes: int) -> int:
    return -(-working_set_bytes() // num_bytes)


def _matrices(matrix: MatrixShape, weight_format: str, *, count: int = 1) -> list[PackedMatrix]:
    """Copies of one random weight, or of one for each of `count` experts."""
    num_bytes = count * packed_bytes(matrix.rows, matrix.columns, weight_format)
    made = [
        PackedMatrix(matrix.rows, matrix.columns, weight_format, count=count) for _ in range(_num_copies(num_bytes))
    ]
    values = torch.randn(matrix.rows, matrix.columns) * 0.02
    for index in range(count):
        made[0].fill(values, 0, index=index)
    for other in made[1:]:
        other.storage.copy_(made[0].storage)
    return made


def _linear(matrix: MatrixShape, weight_format: str, rows: Sequence[int]) -> Iterator[Case]:
    weights = _matrices(matrix, weight_format)
    for count in rows:
        x = torch.randn(count, matrix.columns)
        yield Case(
            op="packed_linear",
            shape=str(matrix),
            precision=weight_format,
            rows=count,
            tokens=count,
            work=Work(
                operations=2.0 * count * matrix.rows * matrix.columns,
                precision=weight_format,
                memory_bytes=packed_bytes(matrix.rows, matrix.columns, weight_format),
                cache_bytes=4.0 * count * (matrix.rows + matrix.columns),
            ),
            calls=[partial(ops.packed_linear, x, weight) for weight in weights],
        )


def _experts(shapes: OpShapes, weight_format: str, rows: Sequence[int]) -> Iterator[Case]:
    spec, chosen = shapes.experts, shapes.experts_per_token
    assert spec is not None, "the group is made for models with experts"
    gate_up = MatrixShape("gate_up", 2 * spec.width, spec.hidden_size)
    down = MatrixShape("down", spec.hidden_size, spec.width)
    ups, downs = (_matrices(matrix, weight_format, count=spec.num_experts) for matrix in (gate_up, down))
    one = packed_bytes(gate_up.rows, gate_up.columns, weight_format)
    one += packed_bytes(down.rows, down.columns, weight_format)
    for count in rows:
        x = torch.randn(count, spec.hidden_size)
        weights, ids = ops.route(torch.randn(count, spec.num_experts), chosen, renormalize=True)
        yield Case(
            op="packed_experts",
            shape=f"{chosen} of {spec.num_experts}, {spec.hidden_size}x{spec.width}",
            precision=weight_format,
            rows=count,
            tokens=count,
            work=Work(
                operations=6.0 * count * chosen * spec.hidden_size * spec.width,
                precision=weight_format,
                memory_bytes=one * len(set(ids.flatten().tolist())),
                cache_bytes=8.0 * count * spec.hidden_size,
            ),
            calls=[  # every expert has its turn
                partial(ops.packed_experts, x, up, down, weights, (ids + turn) % spec.num_experts, kind=spec.activation)
                for turn in range(spec.num_experts)
                for up, down in zip(ups, downs, strict=False)
            ],
        )


def _attention(shapes: OpShapes, dtype: str, context: int) -> Iterator[Case]:
    """One new token for several rows, and a prompt's last tokens for one."""
    prompt = min(PREFILL_TOKENS, context)
    for rows, queries in (*((count, 1) for count in DECODE_ROWS), (1, prompt)):
        yield _attention_case(shapes, getattr(torch, dtype), rows=rows, queries=queries, context=context)


def _attention_case(shapes: OpShapes, dtype: torch.dtype, *, rows: int, queries: int, context: int) -> Case:
    spec, backend = shapes.attention, select_backend("kernels")
    per_row = -(-context // _PAGE_SIZE)
    token_bytes = 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize
    layers = [KVLayerSpec(spec.num_kv_heads, spec.head_dim)] * _num_copies(rows * per_row * _PAGE_SIZE * token_bytes)
    pages = allocate(
        layers,
        attention=backend,
        num_pages=rows * per_row,
        page_size=_PAGE_SIZE,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    for layer in pages:
        layer.fill_(1)  # memory that nothing was written to is one page of zeros over and over
    plan = backend.plan(_batch(rows, per_row, queries=queries, context=context))
    assert isinstance(plan, CpuPlan), "the kernels' backend was asked for"
    tokens, heads = rows * queries, spec.num_heads + 2 * spec.num_kv_heads
    q, k, v = _qkv(shapes, tokens)
    seen = [min(position + 1, spec.window or position + 1) for position in range(context - queries, context)]
    return Case(
        op="attention",
        shape="decode" if queries == 1 else f"prefill {queries}",
        precision=str(dtype).removeprefix("torch."),
        rows=rows,
        context=context,
        tokens=tokens,
        work=Work(
            operations=4.0 * rows * spec.num_heads * spec.head_dim * sum(seen),
            memory_bytes=float(rows * min(context, max(seen) + queries - 1) * token_bytes),
            cache_bytes=4.0 * tokens * spec.head_dim * (heads + spec.num_heads),
        ),
        calls=[partial(backend.run, q, k, v, kv=kv, spec=spec, plan=plan) for kv in pages],
        plan=plan.record,
    )


def _batch(rows: int, per_row: int, *, queries: int, context: int) -> AttentionBatch:
    """Rows of equal length on pages of their own, one after the other."""
    positions = torch.arange(context - queries, context).repeat(rows)
    firsts = torch.arange(rows).repeat_interleave(queries) * per_row * _PAGE_SIZE
    return AttentionBatch(
        query_lens=[queries] * rows,
        context_lens=[context] * rows,
        page_tables=torch.arange(rows * per_row, dtype=torch.int32).view(rows, per_row),
        slot_mapping=firsts + positions,
        page_size=_PAGE_SIZE,
    )


def _qkv(shapes: OpShapes, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, H, D] and k, v [T, K, D], parts of one product as they are in a layer."""
    spec = shapes.attention
    parts = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    q, k, v = torch.split(torch.randn(tokens, sum(parts), spec.head_dim), list(parts), dim=1)
    return q, k, v


def _row_by_row(shapes: OpShapes, rows: Sequence[int]) -> Iterator[Case]:
    for count in rows:
        yield from _row_cases(shapes, count)
        if count <= MAX_HEAD_ROWS:
            call = partial(sampling.greedy, torch.randn(count, shapes.vocab_rows))
            yield _row_case("greedy", str(shapes.vocab_rows), count, numbers=shapes.vocab_rows, call=call)


def _row_cases(shapes: OpShapes, count: int) -> Iterator[Case]:
    width, spec = shapes.hidden_size, shapes.attention
    x, residual, weight = torch.randn(count, width), torch.randn(count, width), torch.ones(width)
    norm = partial(ops.rms_norm, x, weight, eps=1e-5)
    yield _row_case("rms_norm", str(width), count, numbers=2 * width, call=norm)
    added = partial(ops.add_rms_norm, x, residual, weight, eps=1e-5)
    yield _row_case("add_rms_norm", str(width), count, numbers=4 * width, call=added)
    if shapes.rotary_dim:
        q, k, _ = _qkv(shapes, count)
        cos, sin = torch.randn(2, count, shapes.rotary_dim // 2)
        heads = spec.num_heads + spec.num_kv_heads
        turned = partial(ops.rope, q, k, cos, sin)
        yield _row_case("rope", f"{heads}x{spec.head_dim}", count, numbers=2 * heads * spec.head_dim, call=turned)
    if shapes.mlp_width:
        gated = partial(ops.gated_activation, torch.randn(count, 2 * shapes.mlp_width), shapes.activation)
        numbers = 3 * shapes.mlp_width
        yield _row_case("gated_activation", str(shapes.mlp_width), count, numbers=numbers, call=gated)


def _row_case(op: str, shape: str, rows: int, *, numbers: int, call: Callable[[], object]) -> Case:
    """An operation that reads and writes so many float32 numbers per row."""
    work = Work(cache_bytes=4.0 * rows * numbers)
    return Case(op=op, shape=shape, precision="", rows=rows, tokens=rows, work=work, calls=[call])
