"""From modules to checkpoint names: fused parts, cuts, renames, other forms, and refusals."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from quire.base.errors import ConfigError, WeightError
from quire.layers.config import MoeConfig
from quire.layers.context import ParallelGroup
from quire.layers.decoder import CausalLM
from quire.layers.linear import build, fused, linear, regroup_qkv
from quire.layers.moe import MoE
from quire.layers.weights import collect_alternatives, collect_slots
from quire.quant.interface import LinearSpec, Part


class Renamed(CausalLM):
    renames: ClassVar = {"model": "transformer.body", "mlp": "", "embed_tokens": "wte"}


def test_the_module_tree_is_the_checkpoint_tree(make_config, context):
    slots = CausalLM(make_config(num_layers=1), context).weight_slots()
    assert {name: slot.shape for name, slot in slots.items()} == {
        "model.embed_tokens.weight": (31, 16),
        "model.layers.0.input_layernorm.weight": (16,),
        "model.layers.0.self_attn.q_proj.weight": (32, 16),
        "model.layers.0.self_attn.k_proj.weight": (16, 16),
        "model.layers.0.self_attn.v_proj.weight": (16, 16),
        "model.layers.0.self_attn.o_proj.weight": (16, 32),
        "model.layers.0.post_attention_layernorm.weight": (16,),
        "model.layers.0.mlp.gate_proj.weight": (24, 16),
        "model.layers.0.mlp.up_proj.weight": (24, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 24),
        "model.norm.weight": (16,),
        "lm_head.weight": (31, 16),
    }


def test_filling_every_slot_fills_every_number(make_config, context):
    model = CausalLM(make_config(qkv_bias=True, out_bias=True, mlp_bias=True), context)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    for slot in model.weight_slots().values():
        slot.load(torch.zeros(slot.shape))
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_biases_appear_where_the_configuration_has_them(make_config, context):
    names = CausalLM(make_config(qkv_bias=True), context).weight_slots()
    assert "model.layers.1.self_attn.k_proj.bias" in names
    assert "model.layers.1.self_attn.o_proj.bias" not in names


def test_a_tied_head_has_no_slot_and_its_tensor_is_ignored(make_config, context):
    model = CausalLM(make_config(tie_word_embeddings=True), context)
    assert "lm_head.weight" not in model.weight_slots()
    assert r"(lm_head|lm_head)\.weight" in model.ignored_weights
    assert model.lm_head.table.weight is model.model.embed_tokens.table.weight


def test_renames_apply_to_path_components_and_may_drop_a_level(make_config, context):
    names = set(Renamed(make_config(num_layers=1), context).weight_slots())
    assert "transformer.body.wte.weight" in names
    assert "transformer.body.layers.0.down_proj.weight" in names


def test_a_fused_layer_is_filled_part_by_part_in_order(context):
    layer = fused(context, 3, [("a", 2), ("b", 1)], bias=True)
    for slot in layer.weight_slots("ab"):
        slot.load(torch.full(slot.shape, {"a": 1.0, "b": 2.0}[slot.name[0]]))
    assert layer(torch.ones(1, 3)).tolist() == [[4.0, 4.0, 8.0]]


def test_a_transposed_checkpoint_tensor_is_turned(context):
    layer = linear(context, 2, 3, transposed=True)
    (slot,) = layer.weight_slots("conv")
    assert (slot.name, slot.shape) == ("conv.weight", (2, 3))
    slot.load(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert layer(torch.tensor([[1.0, 10.0]])).tolist() == [[41.0, 52.0, 63.0]]


def test_interleaved_heads_are_put_in_order_in_weight_and_bias(context):
    def reorder(tensor):
        return regroup_qkv(tensor, groups=2, queries=2, head_dim=1)

    layer = build(context, LinearSpec(in_features=1, parts=(Part("", 8),), bias=True, reorder=reorder))
    # Per group: two queries, k, v.
    stored = torch.tensor([0.0, 1.0, 10.0, 20.0, 2.0, 3.0, 11.0, 21.0])
    for slot in layer.weight_slots("qkv"):
        slot.load(stored.reshape(slot.shape))
    expected = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 20.0, 21.0]
    assert layer.weight.flatten().tolist() == expected
    assert layer.bias.tolist() == expected


def test_a_transposed_tensor_is_turned_before_it_is_reordered(context):
    spec = LinearSpec(in_features=1, parts=(Part("", 3),), transposed=True, reorder=lambda rows: rows.flip(0))
    layer = build(context, spec)
    (slot,) = layer.weight_slots("conv")
    slot.load(torch.tensor([[1.0, 2.0, 3.0]]))
    assert layer.weight.flatten().tolist() == [3.0, 2.0, 1.0]


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(make_config, context):
    slot = CausalLM(make_config(), context).weight_slots()["model.norm.weight"]
    with pytest.raises(WeightError, match=r"model.norm.weight has shape \[17\]; config.json implies \[16\]"):
        slot.load(torch.zeros(17))


def test_weights_are_stored_in_the_dtype_of_the_model(make_config, make_context):
    slot = CausalLM(make_config(), make_context(dtype=torch.bfloat16)).weight_slots()["model.norm.weight"]
    slot.load(torch.full((16,), 1.001))
    assert slot.target.dtype == torch.bfloat16 and slot.target[0] == 1.0


def experts(context):
    config = MoeConfig(num_experts=3, experts_per_token=2, intermediate_size=4, renormalize=True, layers=frozenset([0]))
    return torch.nn.ModuleDict(
        {"layer": torch.nn.ModuleDict({"mlp": MoE(config, 8, activation="silu", context=context)})}
    )


def test_experts_are_filled_one_by_one_or_all_at_once(context):
    root = experts(context)
    renames = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", "mlp": "moe"}
    slots, others = collect_slots(root, renames), collect_alternatives(root, renames)
    assert {name for name in slots if ".1." in name} == {f"layer.moe.experts.1.{w}.weight" for w in ("w1", "w2", "w3")}
    assert set(others) == {f"layer.mlp.{n}" for n in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")}
    # Together the other form fills every slot of the usual one, and puts the same numbers there.
    assert {name for slot in others.values() for name in slot.fills} == set(slots)
    whole = torch.randn(3, 8, 8)
    others["layer.mlp.experts.gate_up_proj"].load(whole)
    before = root["layer"]["mlp"].experts.gate_up.clone()
    for expert in range(3):
        slots[f"layer.moe.experts.{expert}.w1.weight"].load(whole[expert, :4])
        slots[f"layer.moe.experts.{expert}.w3.weight"].load(whole[expert, 4:])
    assert torch.equal(root["layer"]["mlp"].experts.gate_up, before)


def test_more_than_one_device_is_refused(make_config, make_context):
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2; this model runs on 1 device"):
        CausalLM(make_config(), make_context(parallel=ParallelGroup(0, 2)))


def test_learned_positions_bound_the_length_served(make_config, make_context):
    config = make_config(position_scheme="learned", ropes=(None, None))
    with pytest.raises(ConfigError, match="max_model_len is 65; allowed: up to 64"):
        CausalLM(config, make_context(max_model_len=65))
