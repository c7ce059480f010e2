"""Layers and tables with packed weights: what fills them, what they compute, what they hold."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from quire.base.cpu_kernels import are_usable
from quire.base.errors import WeightError
from quire.layers.linear import regroup_qkv
from quire.ops.cpu.weights import FORMATS
from quire.quant.interface import LinearSpec, Part
from quire.quant.packed import PackedWeights
from quire.quant.schemes import select_scheme
from quire.quant.unquantized import Unquantized

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")

CPU = torch.device("cpu")
OPTIONS = {"dtype": torch.float32, "device": CPU}
ALLOWED = {"float32": 1e-5, "bfloat16": 0.03, "bfloat16_dot": 0.04, "int8": 0.05, "int4": 0.4}
"""Error of an output of size about 1, from rounding 40 weights."""
EXACTNESS = {"float32": 1e-4, "bfloat16": 1e-4, "bfloat16_dot": 0.05, "int8": 0.1, "int4": 0.1}
"""Error of a product of 40 numbers of size 1 with the very weights that are held: some formats round the input."""
SPECS = {
    "one part": LinearSpec(in_features=40, parts=(Part("", 21),), bias=True),
    "three parts": LinearSpec(in_features=40, parts=(Part("q", 24), Part("k", 9), Part("v", 9)), bias=True),
    "transposed": LinearSpec(in_features=40, parts=(Part("", 24),), bias=True, transposed=True),
    "reordered": LinearSpec(
        in_features=40,
        parts=(Part("", 3 * 4 * 5),),
        bias=True,
        reorder=partial(regroup_qkv, groups=3, queries=2, head_dim=5),
    ),
    "without a bias": LinearSpec(in_features=40, parts=(Part("", 3),)),
}


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(8)
    return lambda *shape: torch.randn(*shape, generator=generator)


def fill(layer, random):
    """Load random tensors into every slot; returns them by name."""
    tensors = {}
    for slot in layer.weight_slots("proj"):
        tensors[slot.name] = random(*slot.shape) / 40**0.5
        slot.load(tensors[slot.name].clone())
    return tensors


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_a_packed_layer_computes_what_a_plain_one_with_the_same_tensors_does(random, name, weight_format):
    """S18, S41"""
    packed = PackedWeights(weight_format).linear(SPECS[name], **OPTIONS)
    plain = Unquantized().linear(SPECS[name], **OPTIONS)
    tensors = fill(packed, random)
    assert [slot.name for slot in plain.weight_slots("proj")] == list(tensors)
    for slot in plain.weight_slots("proj"):
        slot.load(tensors[slot.name])
    x = random(7, 40)
    assert (packed(x) - plain(x)).abs().max() <= ALLOWED[weight_format]


def test_a_tensor_of_another_shape_is_refused_before_it_is_packed(random):
    layer = PackedWeights("int8").linear(SPECS["one part"], **OPTIONS)
    before = layer.matrix.storage.clone()
    slot = next(iter(layer.weight_slots("proj")))
    with pytest.raises(WeightError, match=r"proj\.weight has shape \[40, 21\]; config\.json implies \[21, 40\]"):
        slot.load(random(40, 21))
    assert torch.equal(layer.matrix.storage, before)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_table_is_looked_up_and_multiplied_with(random, weight_format):
    """The last rows of a vocabulary that is no multiple of sixteen are there as well."""
    table, weight = PackedWeights(weight_format).table(37, 40, **OPTIONS), random(37, 40)
    table.slot("embed.weight").load(weight)
    assert table.matrix.weight_format == ("int8" if weight_format == "int4" else weight_format)
    rows = table.lookup(torch.arange(37))
    assert torch.allclose(rows, weight, atol=0.02)
    assert torch.allclose(table.lookup(torch.tensor([34, 0]), scale=3.0, offset=2), rows[[36, 2]] * 3.0)
    hidden = random(3, 40)
    assert torch.allclose(table.project(hidden), hidden @ rows.t(), atol=EXACTNESS[weight_format])


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "int8"])
def test_a_table_knows_what_it_holds_to_the_last_row(random, weight_format):
    """S41: a tied checkpoint that stores its head a second time is told from one that is not tied."""
    table, weight = PackedWeights(weight_format).table(4096 + 21, 8, **OPTIONS), random(4096 + 21, 8)
    table.slot("embed.weight").load(weight)
    assert table.holds(weight)
    for row in (0, 4095, 4096, 4116):
        other = weight.clone()
        other[row] *= -1.0
        assert not table.holds(other)


def test_packed_weights_are_chosen_for_float32_on_the_cpu_alone():
    assert select_scheme("int8", device=CPU, dtype=torch.float32).name == "int8"
    assert isinstance(select_scheme("bfloat16", device=CPU, dtype=torch.bfloat16), Unquantized)
    assert isinstance(select_scheme("float32", device=torch.device("cuda"), dtype=torch.float32), Unquantized)


def test_a_plain_table_shifts_its_ids_as_a_packed_one_does(random):
    plain = Unquantized().table(20, 6, **OPTIONS)
    plain.slot("embed.weight").load(random(20, 6))
    ids = torch.tensor([0, 17, 3])
    assert torch.equal(plain.lookup(ids, offset=2), plain.weight[ids + 2])
    assert torch.equal(plain.lookup(ids, scale=0.5), plain.weight[ids] * 0.5)
