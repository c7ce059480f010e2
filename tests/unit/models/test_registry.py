"""Architectures map to implementations, and a plug-in can add its own."""

import json

import pytest
import torch

from quire.attention import select_backend
from quire.base.errors import ConfigError, UnsupportedModelError
from quire.layers.context import BuildContext
from quire.models import readers
from quire.models.families import FAMILIES, FamilyEntry
from quire.models.inspect import inspect_model
from quire.models.loader import build_model
from quire.models.registry import choose_implementation, register_architecture

ENTRY = FamilyEntry("Mine", "quire.models.llama", "LlamaForCausalLM", readers.read_llama)


@pytest.fixture
def families_restored():
    saved = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(saved)


def test_every_native_family_names_a_class_that_exists():
    """S27, S45"""
    import importlib

    for entry in FAMILIES.values():
        assert hasattr(importlib.import_module(entry.module), entry.class_name)


def test_a_plug_in_adds_an_architecture(checkpoint_dir, families_restored):
    """S87: the documented way to run a new architecture without forking."""
    checkpoint_dir.config(architectures=["MineForCausalLM"], model_type="mine")
    with pytest.raises(UnsupportedModelError, match="MineForCausalLM"):
        inspect_model(checkpoint_dir.path, require_weights=False)
    register_architecture("MineForCausalLM", ENTRY)
    info = inspect_model(checkpoint_dir.path, require_weights=False)
    assert (info.family, info.implementation) == ("Mine", "native")
    context = BuildContext(
        dtype=torch.float32, device=torch.device("cpu"), attention=select_backend("reference"), max_model_len=32
    )
    assert len(build_model(info, context).kv_layers) == 2


def test_an_architecture_is_not_replaced_by_accident(families_restored):
    """S87"""
    with pytest.raises(ConfigError, match="replace=True"):
        register_architecture("LlamaForCausalLM", ENTRY)
    register_architecture("LlamaForCausalLM", ENTRY, replace=True)
    assert choose_implementation({"architectures": ["LlamaForCausalLM"]}).family == "Mine"


def test_a_native_architecture_is_preferred_where_several_are_named():
    choice = choose_implementation({"architectures": ["SomethingElse", "LlamaForCausalLM"]})
    assert choice.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [3], [""], {"a": 1}], ids=json.dumps)
def test_architectures_must_be_a_list_of_names(names):
    """S27"""
    with pytest.raises(UnsupportedModelError, match="architectures is"):
        choose_implementation({"architectures": names})


@pytest.mark.parametrize("name", ["../../evil", "Foo(Bar)", "X\nclass Y", "os.system"])
def test_a_hostile_architecture_name_is_only_looked_up(name):
    """SEC-8: it never becomes part of a path."""
    with pytest.raises(UnsupportedModelError, match="knows this architecture"):
        choose_implementation({"architectures": [name], "model_type": "../../etc"})


def test_a_registered_architecture_is_not_judged_by_keys_that_refuse_others(checkpoint_dir, families_restored):
    """S87: a plug-in vouches for its own layers, whatever keys its config.json has; quantized weights stay refused."""
    config = {"architectures": ["MineForCausalLM"], "ssm_state_size": 16}
    with pytest.raises(UnsupportedModelError, match="recurrent state"):
        choose_implementation(config)
    register_architecture("MineForCausalLM", ENTRY)
    assert choose_implementation(config).entry is ENTRY
    with pytest.raises(UnsupportedModelError, match="quantized"):
        choose_implementation(config | {"quantization_config": {"quant_method": "awq"}})
