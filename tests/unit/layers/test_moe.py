"""The layer of experts: what its scheme holds, and the two forms its weights come in."""

from __future__ import annotations

import pytest
import torch

from quire.layers.config import MoeConfig
from quire.layers.moe import MoE
from quire.layers.weights import collect_alternatives, collect_slots
from quire.ops.cpu.library import are_usable
from quire.ops.cpu.weights import FORMATS
from quire.quant.packed import PackedWeights

needs_kernels = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")


@pytest.fixture
def make_layer(make_context):
    """A layer of five experts under the path `layer.mlp`, by weight format; None is unquantized."""
    config = MoeConfig(
        num_experts=5, experts_per_token=2, intermediate_size=20, renormalize=True, layers=frozenset([0])
    )

    def make(weight_format=None):
        context = make_context(**({} if weight_format is None else {"scheme": PackedWeights(weight_format)}))
        moe = MoE(config, 24, activation="silu", context=context)
        return torch.nn.ModuleDict({"layer": torch.nn.ModuleDict({"mlp": moe})})

    return make


@pytest.fixture
def weights(make_layer):
    """Numbers for every slot, by name."""
    generator = torch.Generator().manual_seed(2)
    slots = collect_slots(make_layer(), {})
    return {name: torch.randn(slot.shape, generator=generator) * 0.3 for name, slot in slots.items()}


def filled(root, weights):
    """The layer, loaded expert by expert."""
    for name, slot in collect_slots(root, {}).items():
        slot.load(weights[name])
    return root["layer"]["mlp"]


def combined(weights, *parts):
    """These parts of all experts as one tensor [X, rows, columns]."""
    experts = [[weights[f"layer.mlp.experts.{index}.{part}.weight"] for part in parts] for index in range(5)]
    return torch.stack([torch.cat(tensors) for tensors in experts])


@needs_kernels
def test_packed_experts_compute_what_plain_ones_do(make_layer, weights):
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(3))
    plain, packed = filled(make_layer(), weights)(x), filled(make_layer("float32"), weights)(x)
    assert torch.allclose(packed, plain, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("weight_format", FORMATS)
def test_all_experts_at_once_pack_to_the_same_bytes(make_layer, weights, weight_format):
    one_by_one, root = filled(make_layer(weight_format), weights), make_layer(weight_format)
    others = collect_alternatives(root, {"mlp": "moe"})
    assert {name for slot in others.values() for name in slot.fills} == {
        name.replace(".mlp.", ".moe.") for name in weights
    }
    others["layer.mlp.gate.weight"].load(weights["layer.mlp.gate.weight"])
    others["layer.mlp.experts.gate_up_proj"].load(combined(weights, "gate_proj", "up_proj"))
    others["layer.mlp.experts.down_proj"].load(combined(weights, "down_proj"))
    at_once = root["layer"]["mlp"]
    assert torch.equal(at_once.gate.matrix.storage, one_by_one.gate.matrix.storage)
    assert torch.equal(at_once.experts.gate_up.storage, one_by_one.experts.gate_up.storage)
    assert torch.equal(at_once.experts.down.storage, one_by_one.experts.down.storage)


@needs_kernels
@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_router_is_never_narrowed(make_layer, weights, weight_format):
    """Whatever the experts are held in, every token goes where it goes with plain weights."""
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(4))
    plain, packed = filled(make_layer(), weights), filled(make_layer(weight_format), weights)
    assert packed.experts.gate_up.weight_format == weight_format
    assert torch.allclose(packed.gate(x), plain.gate(x), atol=1e-5)
