"""Mixtral and Qwen3-MoE on the CPU kernels: parity with packed weights, other formats, recorded passes, memory."""

import itertools

import pytest
import torch

from quire.attention import select_backend
from quire.attention.interface import AttentionBatch
from quire.engine.memory import WEIGHT_BYTES
from quire.layers.context import BuildContext
from quire.models.inspect import inspect_model
from quire.models.loader import load_model
from quire.ops.cpu.library import are_usable
from quire.ops.cpu.weights import FORMATS, PackedMatrix
from quire.quant.packed import PackedWeights
from quire.runner.cpu_graphs import CpuGraphs

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
FAMILIES = {
    "mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": SIZES | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "qwen3_moe: dense layers, plain weights": SIZES | {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 16,
        "decoder_sparse_step": 2, "norm_topk_prob": False,
    },
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def path(request, harness):
    """A tiny checkpoint of a family with experts."""
    return harness.checkpoint(request.param.split(":")[0], **FAMILIES[request.param])


def load(path, weight_format, attention="reference"):
    """The model of a checkpoint with weights packed in a format."""
    context = BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=select_backend(attention),
        max_model_len=272,
        scheme=PackedWeights(weight_format),
    )
    return load_model(inspect_model(path), context)


def matrices(model):
    """Every packed matrix of a model."""
    values = itertools.chain.from_iterable(vars(module).values() for module in model.modules())
    return {id(value): value for value in values if isinstance(value, PackedMatrix)}.values()


def test_packed_experts_agree_with_transformers(harness, few_prompts, path):
    """S45: as tests/models/test_parity.py, with the weights and ops of the CPU kernels."""
    results = harness.ours(load(path, "float32"), few_prompts, num_new=16)
    harness.compare(path, results, few_prompts)


@pytest.mark.parametrize(("weight_format", "allowed"), [("bfloat16", 0.001), ("int8", 0.01), ("int4", 0.6)])
def test_narrower_experts_stay_close(harness, few_prompts, path, weight_format, allowed):
    """The median divergence over positions; a dense model of this size and these random weights has the same."""
    results = harness.ours(load(path, weight_format), few_prompts, num_new=2)
    theirs = torch.cat(harness.reference_logits(path, [tokens for tokens, _ in results])).log_softmax(-1)
    ours = torch.cat([logprobs for _, logprobs in results])
    assert (theirs.exp() * (theirs - ours)).sum(-1).median() < allowed


@pytest.mark.parametrize("weight_format", FORMATS)
def test_experts_take_the_bytes_that_the_memory_plan_counts(path, weight_format):
    """But for the rows, groups and lines that sizes this small leave unfilled; the router is never narrowed."""
    model = load(path, weight_format)
    experts = [matrix for matrix in matrices(model) if matrix.count > 1]
    assert {matrix.weight_format for matrix in experts} == {weight_format}
    for matrix in experts:
        panels, groups = -(-matrix.rows // 16), -(-matrix.columns // 32)
        unfilled = panels * 32 * (groups % 2) if weight_format in ("int8", "int4") else 0
        filled = panels * 16 * (groups * 32 if "int" in weight_format else matrix.columns)
        expected = matrix.count * (filled * WEIGHT_BYTES[weight_format] + unfilled)
        assert matrix.storage.numel() == expected
    assert model.model.layers[-1].mlp.gate.matrix.weight_format == "float32"


def test_a_recorded_pass_computes_what_one_op_after_another_does(path):
    """Nothing between the embedding and the last norm is torch's, so a step with experts replays; bits are equal."""
    model = load(path, "bfloat16", attention="cpu")
    page_size, lengths = 16, (9, 1, 24)
    shapes = [model.context.attention.kv_shape(8, page_size, s.num_kv_heads, s.head_dim) for s in model.kv_layers]
    tables = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
    slots = [int(table[p // page_size]) * page_size + p % page_size for table, n in zip(tables, lengths, strict=True)
             for p in range(n)]  # fmt: skip
    batch = AttentionBatch(
        query_lens=list(lengths), context_lens=list(lengths), page_tables=tables, slot_mapping=torch.tensor(slots),
        page_size=page_size,
    )  # fmt: skip
    ids = torch.randint(0, 160, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(n) for n in lengths])
    kv = [torch.zeros(shape) for shape in shapes]
    calls = []

    def forward(plan, ids, positions):
        calls.append(len(ids))
        return (model(ids, positions, kv=kv, plan=plan),)

    graphs = CpuGraphs()
    with torch.inference_mode():
        plan = model.context.attention.plan(batch)
        expected = forward(plan, ids, positions)[0].clone()
        for _ in range(2):
            (found,) = graphs.run("hidden", plan, ids, positions, forward=forward)
            assert torch.equal(found, expected)
    # The second call recorded; one that could not be recorded would have called forward for every step.
    assert calls == [34, 64]
