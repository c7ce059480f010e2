"""Recorded forward passes: a replay is a direct run bit for bit, and what could not be replayed is run op by op."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from quire import ops
from quire.attention.cpu import CpuAttention
from quire.attention.interface import AttentionBatch, AttentionSpec
from quire.base.cpu_kernels import instruction_sets
from quire.ops.cpu.program import NotReplayableError, Pool, Recording, using
from quire.ops.cpu.weights import PackedMatrix
from quire.runner.cpu_graphs import CpuGraphs

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the kernels are not built")

VOCAB, WIDTH, HEADS, SIZE, PAGE = 50, 48, 3, 16, 16
SPEC = AttentionSpec(num_heads=HEADS, num_kv_heads=1, head_dim=SIZE, scale=SIZE**-0.5)


@pytest.fixture(params=[1, 2], autouse=True)
def pool(request):
    with using(Pool(request.param, instruction_sets()[0])) as chosen:
        yield chosen


def packed(rows, columns, seed):
    matrix = PackedMatrix(rows, columns, "int8")
    matrix.fill(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5, 0)
    return matrix


class Tiny:
    """Two layers with attention, norms, an MLP and learned positions; `extra` runs on the hidden states in between."""

    def __init__(self, extra=lambda hidden: hidden):
        self.extra = extra
        self.calls = 0
        self.attention = CpuAttention()
        self.table = packed(VOCAB, WIDTH, 0)
        self.positions = torch.randn(600, WIDTH, generator=torch.Generator().manual_seed(1))
        self.qkv = [packed((HEADS + 2) * SIZE, WIDTH, 2 + i) for i in range(2)]
        self.out = [packed(WIDTH, HEADS * SIZE, 4 + i) for i in range(2)]
        self.up, self.down = packed(2 * 40, WIDTH, 6), packed(WIDTH, 40, 7)
        self.weight = torch.ones(WIDTH)
        self.kv = [torch.zeros(self.attention.kv_shape(80, PAGE, 1, SIZE)) for _ in range(2)]

    def __call__(self, plan, token_ids, positions):
        self.calls += 1
        x = ops.add(ops.packed_embedding(token_ids, self.table), ops.embedding(positions, self.positions))
        total = x
        for layer in range(2):
            qkv = ops.packed_linear(x, self.qkv[layer]).unflatten(-1, (-1, SIZE))
            q, k, v = qkv.split((HEADS, 1, 1), dim=1)
            attended = self.attention.run(q, k, v, kv=self.kv[layer], spec=SPEC, plan=plan)
            x = self.extra(ops.packed_linear(attended.flatten(1), self.out[layer]))
            x, total = ops.add_rms_norm(x, total, self.weight, eps=1e-5)
            x = ops.packed_linear(ops.gated_activation(ops.packed_linear(x, self.up), "silu"), self.down)
        return ops.add_rms_norm(x, total, self.weight, eps=1e-5)[0]

    def step(self, rows):
        """Plan and inputs for rows (first position, stop), each on pages of its own."""
        pages = [range(i * 20, i * 20 + 20) for i in range(len(rows))]
        places = [[r[p // PAGE] * PAGE + p % PAGE for p in range(*row)] for r, row in zip(pages, rows, strict=True)]
        batch = AttentionBatch(
            query_lens=[stop - first for first, stop in rows],
            context_lens=[stop for _, stop in rows],
            page_tables=torch.tensor([list(r) for r in pages], dtype=torch.int32),
            slot_mapping=torch.tensor([slot for row in places for slot in row]),
            page_size=PAGE,
        )
        positions = torch.cat([torch.arange(*row) for row in rows])
        return self.attention.plan(batch), positions * 7 % VOCAB, positions


def run(graphs, model, step):
    """The one result of a pass."""
    (result,) = graphs.run("hidden", *step, forward=lambda *inputs: (model(*inputs),))
    return result


STEPS = [
    [(0, 5)],
    [(5, 6)],
    [(6, 64), (0, 6)],
    [(64, 65), (6, 7), (0, 60)],
    [(65, 66)],
    [(66, 200)],
    [(200, 201), (7, 8)],
]


def test_replays_of_any_number_of_tokens_are_direct_runs_bit_for_bit():
    """REL-15: one recording serves every step up to its capacity; larger steps make another."""
    model, same, graphs = Tiny(), Tiny(), CpuGraphs()
    with torch.inference_mode():
        for rows in STEPS:
            recorded = run(graphs, model, model.step(rows))
            assert torch.equal(recorded, same(*same.step(rows))), rows
    assert model.calls == 2, "one recording of 64 tokens and one of 256"
    assert all(map(torch.equal, model.kv, same.kv))


def test_a_step_without_tokens_and_one_of_exactly_the_capacity_are_replayed():
    model, same, graphs = Tiny(), Tiny(), CpuGraphs()
    for rows in ([(0, 64)], [], [(64, 128)]):
        step = model.step(rows) if rows else (_empty_plan(model), *(torch.zeros(0, dtype=torch.int64),) * 2)
        expected = same(*same.step(rows)) if rows else torch.zeros(0, WIDTH)
        assert torch.equal(run(graphs, model, step), expected)


def test_inputs_that_change_in_place_and_others_beside_them_are_read_at_every_replay():
    """What a step draws with is an input like its positions."""
    graphs, plan = CpuGraphs(), Tiny().step([(0, 1)])[0]
    places, positions, other = (torch.zeros(3, dtype=torch.int64) for _ in range(3))
    tables = [torch.arange(10.0).unsqueeze(1) * 10**i for i in range(3)]

    def forward(plan, places, positions, other):
        read = [ops.embedding(ids, table) for ids, table in zip((places, positions, other), tables, strict=True)]
        return (ops.add(ops.add(read[0], read[1]), read[2]),)

    for step in range(1, 4):
        places += 1
        positions += 2
        if step == 2:
            other = torch.tensor([7, 8, 9])
        (found,) = graphs.run("sum", plan, places, positions, other, forward=forward)
        assert found.flatten().tolist() == [step + 20 * step + 100 * o for o in other.tolist()]
    assert graphs.is_recording


def test_a_pass_that_contains_another_is_recorded_whole_and_each_kind_for_itself():
    model, same, graphs = Tiny(), Tiny(), CpuGraphs()

    def inner(*inputs):
        return (model(*inputs),)

    def outer(*inputs):
        (hidden,) = graphs.run("inner", *inputs, forward=inner)
        return hidden, ops.add(hidden, hidden)

    with torch.inference_mode():
        for kind in ("outer", "inner", "outer"):
            step = model.step([(0, 5)])
            found = graphs.run(kind, *step, forward=outer if kind == "outer" else inner)
            expected = same(*step)
            assert torch.equal(found[0], expected)
            assert kind == "inner" or torch.equal(found[1], expected + expected)
    assert model.calls == 2, "one recording of each kind"


def test_a_part_that_can_be_recorded_is_replayed_inside_a_pass_that_cannot():
    model, same, graphs = Tiny(), Tiny(), CpuGraphs()

    def outer(*inputs):
        (hidden,) = graphs.run("inner", *inputs, forward=lambda *given: (model(*given),))
        return (hidden.double(),)

    with torch.inference_mode():
        for rows in STEPS[:2]:
            (found,) = graphs.run("outer", *model.step(rows), forward=outer)
            assert torch.equal(found, same(*same.step(rows)).double())
    assert model.calls == 2, "the attempt to record the whole, and the recording of the part"


def _empty_plan(model):
    batch = AttentionBatch(
        query_lens=[],
        context_lens=[],
        page_tables=torch.zeros(0, 1, dtype=torch.int32),
        slot_mapping=torch.zeros(0, dtype=torch.int64),
        page_size=PAGE,
    )
    return model.attention.plan(batch)


def square(hidden):
    return hidden * hidden


def add_in_place(hidden):
    hidden += 1.0
    return hidden


def set_items(hidden):
    hidden[:, 0] = 1.0
    return hidden


def into_out(hidden):
    torch.add(hidden, 1.0, out=hidden)
    return hidden


def inner_relu(hidden):
    return F.relu(hidden, inplace=True)


def copied(hidden):
    return hidden[:, ::2].contiguous().repeat_interleave(2, dim=1)


def branch(hidden):
    return hidden if bool((hidden[0, 0:1]).view(()) > -9e9) else -hidden


def read_number(hidden):
    return hidden if hidden[0, 0].item() < 9e9 else -hidden


def index_with(hidden):
    return hidden[torch.arange(len(hidden)).flip(0)].flip(0)


def fresh(hidden):
    return torch.zeros_like(hidden)


def other_rows(hidden):
    ops.softcap(hidden[:1], 5.0)
    return hidden


FOREIGN = {
    square: "mul",
    add_in_place: "add_",
    set_items: "__setitem__",
    into_out: "add",
    inner_relu: "relu",
    copied: "contiguous",
    branch: "gt",
    read_number: "item",
    index_with: "arange",
    fresh: "zeros_like",
}


@pytest.mark.parametrize("extra", FOREIGN, ids=lambda f: f.__name__)
@torch.inference_mode()
def test_a_foreign_operation_is_named_and_the_model_then_runs_op_by_op(caplog, extra):
    """SEC-35: nothing is silently left out of a replay."""
    model, same, graphs = Tiny(extra), Tiny(extra), CpuGraphs()
    with caplog.at_level(logging.INFO):
        for rows in STEPS:
            assert torch.equal(run(graphs, model, model.step(rows)), same(*same.step(rows)))
    (line,) = [r.getMessage() for r in caplog.records if "op by op" in r.getMessage()]
    assert f"torch's {FOREIGN[extra]} is no op" in line
    assert model.calls == len(STEPS) + 1


def test_an_op_that_does_not_grow_with_the_tokens_is_not_recorded(caplog):
    model, same, graphs = Tiny(other_rows), Tiny(other_rows), CpuGraphs()
    with caplog.at_level(logging.INFO):
        for rows in STEPS[:2]:
            assert torch.equal(run(graphs, model, model.step(rows)), same(*same.step(rows)))
    assert "op on 1 rows cannot be replayed" in caplog.text


def test_a_pass_that_ends_outside_the_ops_is_not_recorded(caplog):
    model, graphs = Tiny(), CpuGraphs()
    table = torch.randn(600, WIDTH)
    with caplog.at_level(logging.INFO):
        result = run(graphs, lambda plan, ids, positions: table[: len(ids)], model.step([(0, 5)]))
    assert torch.equal(result, table[:5])
    assert "what it returns is not the result of an op" in caplog.text


def test_a_failure_while_recording_leaves_the_thread_running_ops(pool):
    def fail(plan, token_ids, positions):
        raise KeyError("a bug in the model")

    model = Tiny()
    with pytest.raises(KeyError):
        run(CpuGraphs(), fail, model.step([(0, 5)]))
    assert pool.recording is None
    assert torch.equal(ops.add(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_memory_of_results_that_are_gone_is_used_again_and_that_of_others_is_not():
    recording = Recording(64)
    first = recording.empty((64, 32), torch.float32)
    address = first.data_ptr()
    part = first[:, :4]
    del first
    second = recording.empty((64, 32), torch.float32)
    assert second.data_ptr() != address, "a view still looks at it"
    del part
    again = recording.empty((64, 16), torch.float32)
    assert again.data_ptr() == address
    other = recording.empty((64, 16), torch.int64)
    assert other.data_ptr() % 64 == again.data_ptr() % 64 == 0
    assert recording.owns(again[3:]) and recording.owns(other) and not recording.owns(torch.empty(3))


def test_a_deep_model_needs_no_more_memory_than_a_shallow_one():
    def blocks(depth):
        recording, pool = Recording(64), Pool(1, instruction_sets()[0])
        with using(pool):
            pool.start(recording)
            x = recording.empty((64, 32), torch.float32)
            for _ in range(depth):
                x = ops.add(ops.activation(x, "silu"), x)
            pool.stop()
        return len(recording._blocks)

    assert blocks(40) == blocks(3) <= 3


def test_rows_that_are_no_multiple_of_the_tokens_are_refused():
    recording = Recording(64)
    with pytest.raises(NotReplayableError, match="an op on 65 rows"):
        recording.append(None, 65)
    with pytest.raises(NotReplayableError, match="an op on 0 rows"):
        recording.append(None, 0)
