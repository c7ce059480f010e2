"""The decoder's parts: norms with residuals, embeddings, the head, and one forward pass as the formula says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from quire.attention.interface import AttentionBatch
from quire.layers.blocks import ParallelBlock, PostNormBlock, SandwichBlock, SequentialBlock, SharedNormBlock
from quire.layers.config import KVLayerSpec
from quire.layers.decoder import CausalLM
from quire.layers.embedding import Embedding
from quire.layers.norm import LayerNorm, RMSNorm


def fill(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_a_norm_can_add_the_residual_first(context, kind):
    norm = fill(kind(8, eps=1e-5, context=context))
    x, residual = torch.randn(2, 3, 8)
    normed, total = norm.add(x, residual)
    assert torch.equal(total, x + residual) and torch.equal(normed, norm(total))
    normed, total = norm.add(x, None)
    assert torch.equal(total, x) and torch.equal(normed, norm(x))


def test_a_layer_norm_without_weights_has_no_slots(context):
    assert list(LayerNorm(8, eps=1e-5, context=context, affine=False).weight_slots("norm")) == []


def test_embeddings_are_scaled_and_shifted(context):
    table = fill(Embedding(5, 4, context=context, scale=3.0, offset=2))
    weight = table.table.weight
    assert weight.shape == (7, 4)
    assert torch.equal(table(torch.tensor([0, 4])), weight[[2, 6]] * 3.0)


class Double(torch.nn.Module):
    """Stands for attention: doubles its input."""

    def forward(self, x, rotation, kv, plan):
        return 2 * x


def test_each_block_arranges_its_parts_as_it_says(context):
    norms = [fill(LayerNorm(4, eps=1e-5, context=context), seed) for seed in range(4)]
    n1, n2, n3, n4 = norms
    attention, mlp = Double(), torch.nn.Linear(4, 4)
    h = torch.randn(3, 4)

    def run(block):
        delta, residual = block(h * 0.25, h * 0.75, None, h, None)
        return delta if residual is None else delta + residual

    middle = h + 2 * n1(h)
    assert torch.allclose(run(SequentialBlock(attention, mlp, n1, n2)), middle + mlp(n2(middle)), atol=1e-6)
    assert torch.allclose(run(ParallelBlock(attention, mlp, n1, n2)), h + 2 * n1(h) + mlp(n2(h)), atol=1e-6)
    assert torch.allclose(run(SharedNormBlock(attention, mlp, n1)), h + 2 * n1(h) + mlp(n1(h)), atol=1e-6)
    middle = h + n2(2 * n1(h))
    sandwich = SandwichBlock(attention, mlp, (n1, n2, n3, n4))
    assert torch.allclose(run(sandwich), middle + n4(mlp(n3(middle))), atol=1e-6)
    middle = n1(3 * h)
    delta, residual = PostNormBlock(attention, mlp, n1, n2)(h, None, None, h, None)
    assert residual is None and torch.allclose(delta, n2(middle + mlp(middle)), atol=1e-6)


def step(backend, lengths):
    tables = torch.arange(1, 1 + len(lengths), dtype=torch.int32).unsqueeze(1)
    slots = torch.cat([torch.arange(n) + 16 * (row + 1) for row, n in enumerate(lengths)])
    batch = AttentionBatch(
        query_lens=lengths, context_lens=lengths, page_tables=tables, slot_mapping=slots, page_size=16
    )
    return backend.plan(batch), torch.cat([torch.arange(n) for n in lengths])


def run(model, token_ids, lengths):
    backend = model.context.attention
    plan, positions = step(backend, lengths)
    kv = [
        torch.full(backend.kv_shape(5, 16, layer.num_kv_heads, layer.head_dim), float("nan"))
        for layer in model.kv_layers
    ]
    return model(token_ids, positions, kv=kv, plan=plan)


def test_the_forward_pass_is_the_textbook_decoder(make_config, context):
    """S36: one layer, one prompt, written out with torch's own functions."""
    model = fill(CausalLM(make_config(num_layers=1, ropes=(None,), windows=(None,)), context))
    ids = torch.tensor([3, 1, 4, 1, 5])
    w = {name: slot.target for name, slot in model.weight_slots().items()}

    def norm(x, name):
        return F.rms_norm(x, (16,), w[name], 1e-6)

    layer = "model.layers.0."
    h = w["model.embed_tokens.weight"][ids]
    x = norm(h, layer + "input_layernorm.weight")
    q, k, v = ((x @ w[f"{layer}self_attn.{n}_proj.weight"].T).view(5, -1, 8).transpose(0, 1) for n in "qkv")
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    h = h + out.transpose(0, 1).reshape(5, -1) @ w[layer + "self_attn.o_proj.weight"].T
    x = norm(h, layer + "post_attention_layernorm.weight")
    gate, up = (x @ w[f"{layer}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
    h = h + (F.silu(gate) * up) @ w[layer + "mlp.down_proj.weight"].T
    expected = norm(h, "model.norm.weight")
    actual = run(model, ids, [5])
    assert torch.allclose(actual, expected, atol=1e-5)
    assert torch.allclose(model.logits(actual), expected @ w["lm_head.weight"].T, atol=1e-5)


def test_rows_of_one_step_do_not_see_each_other(make_config, context):
    model = fill(CausalLM(make_config(), context))
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    together = run(model, ids, [3, 4])
    assert torch.allclose(together[:3], run(model, ids[:3], [3]), atol=1e-6)
    assert torch.allclose(together[3:], run(model, ids[3:], [4]), atol=1e-6)


def test_logits_are_float32_and_capped(make_config, make_context):
    model = fill(CausalLM(make_config(final_softcap=0.5), make_context(dtype=torch.bfloat16)))
    logits = model.logits(torch.randn(2, 16).bfloat16() * 20)
    assert logits.shape == (2, 31) and logits.dtype == torch.float32
    assert 0.4 < logits.abs().max() <= 0.5


def test_every_layer_states_its_share_of_the_cache(make_config, context):
    """S10: 2 x layers x kv heads x head size x bytes per token."""
    layers = CausalLM(make_config(), context).kv_layers
    assert layers == (KVLayerSpec(2, 8),) * 2
    assert sum(layer.bytes_per_token(4) for layer in layers) == 2 * 2 * 2 * 8 * 4
