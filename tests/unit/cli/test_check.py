import json
import re
import shutil
from pathlib import Path

import pytest

from quire.base.cpu_kernels import BF16_DOTS, are_usable, chosen_instruction_set
from quire.cli.main import main
from quire.models.encoder_families import ENCODERS
from quire.models.families import FAMILIES
from quire.models.inspect import inspect_model

NARROW = "bfloat16_dot" if chosen_instruction_set() in BF16_DOTS else "bfloat16"
LOADED, CACHED = (NARROW, "bfloat16") if are_usable() else ("float32", "float32")
"""How the demo model's weights are held, and its K and V: the kernels take bfloat16 as it is."""


@pytest.fixture
def copy_of_demo(tmp_path, demo_path):
    """A copy of the built-in model whose config.json can be changed."""
    folder = tmp_path / "model"
    shutil.copytree(demo_path, folder)

    def change(**values):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return str(folder)

    return change


def test_a_supported_model_is_reported_with_its_memory_plan(demo_path, capsys):
    """S125, S10: the answer comes before a weight is read, with the numbers the server will use."""
    assert main(["check", demo_path, "--memory", "1GiB", "--max-model-len", "256"]) == 0
    printed = capsys.readouterr().out
    assert "supported: runs natively" in printed
    assert "KV pages" in printed
    assert re.search(rf"stored as bfloat16: [\d.]+ MiB, loaded as {LOADED}: [\d.]+ MiB", printed)
    assert re.search(rf"as bfloat16: [\d.]+ KiB, used as {CACHED}: [\d.]+ KiB", printed)


def test_json_carries_the_same_report(demo_path, capsys):
    assert main(["check", demo_path, "--json", "--memory", "1GiB", "--page-size", "32"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "supported"
    memory = report["memory"]
    assert memory["page_size"] == 32
    assert memory["page_bytes"] == 32 * memory["kv_bytes_per_token"]
    assert memory["kv_bytes"] == memory["num_pages"] * memory["page_bytes"]
    assert report["loaded"]["weight_bytes"] == memory["weight_bytes"]
    if are_usable():  # packed as stored, but for norms in float32
        assert report["weight_bytes"] < memory["weight_bytes"] < 1.01 * report["weight_bytes"]
    else:
        assert memory["weight_bytes"] == 2 * report["weight_bytes"]
    assert (report["dtype"], report["loaded"]["dtype"]) == ("bfloat16", LOADED)


def test_a_refused_model_exits_with_1_and_its_reason(copy_of_demo, capsys):
    """S27: refused by name, before weights."""
    path = copy_of_demo(architectures=["MambaForCausalLM"], model_type="mamba")
    assert main(["check", path]) == 1
    assert "refused" in capsys.readouterr().out


def test_a_model_that_does_not_fit_says_what_would(demo_path, capsys):
    """S79: wrong memory settings are refused with the fix."""
    assert main(["check", demo_path, "--memory", "3MB"]) == 1
    assert "does not fit as asked" in capsys.readouterr().out


def test_a_directory_that_is_no_checkpoint_exits_with_2(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err.splitlines()[-1]


def test_another_device_needs_to_be_told_its_memory(demo_path, capsys):
    assert main(["check", demo_path, "--device", "cuda"]) == 1
    assert "--memory 80GiB" in capsys.readouterr().out
    assert main(["check", demo_path, "--device", "cuda", "--memory", "8GiB"]) == 0


def test_the_list_of_architectures_is_machine_readable(capsys):
    """S45, S125: every native architecture, as JSON."""
    assert main(["check", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["architecture"] for entry in listed} == set(FAMILIES | ENCODERS)


def test_a_plugin_that_cannot_be_imported_is_a_configuration_error(demo_path, capsys):
    """S87: plug-ins are named by the operator."""
    assert main(["check", demo_path, "--plugins", "no_such_module_anywhere"]) == 2
    assert "no_such_module_anywhere" in capsys.readouterr().err


def test_a_plugin_may_add_an_architecture(copy_of_demo, tmp_path, monkeypatch, capsys):
    """S87: an architecture is added without a fork."""
    (tmp_path / "quire_test_plugin.py").write_text(
        "from quire.models.families import FAMILIES, FamilyEntry\n"
        "from quire.models.registry import register_architecture\n"
        "known = FAMILIES['LlamaForCausalLM']\n"
        "entry = FamilyEntry('Plugged', known.module, known.class_name, known.read)\n"
        "register_architecture('PluggedForCausalLM', entry)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = copy_of_demo(architectures=["PluggedForCausalLM"])
    try:
        assert main(["check", path, "--plugins", "quire_test_plugin"]) == 0
    finally:
        FAMILIES.pop("PluggedForCausalLM", None)
    assert "Plugged" in capsys.readouterr().out


def test_the_models_own_directory_is_left_as_it_was(copy_of_demo):
    path = Path(copy_of_demo())
    before = sorted(file.name for file in path.iterdir())
    main(["check", str(path)])
    assert sorted(file.name for file in path.iterdir()) == before


def test_the_plan_counts_int8_pages_with_their_scales(demo_path, capsys):
    """S10: numbers of one byte and a scale of four per head, where bfloat16 takes two bytes a number."""
    plans = []
    for precision in ("bfloat16", "int8"):
        assert main(["check", demo_path, "--json", "--kv-cache-dtype", precision]) == 0
        plans.append(json.loads(capsys.readouterr().out)["memory"]["kv_bytes_per_token"])
    info = inspect_model(demo_path)
    assert plans[1] == plans[0] // 2 + sum(2 * layer.num_kv_heads * 4 for layer in info.kv_layers)


@pytest.mark.skipif(not are_usable(), reason="without the kernels, pages may be float16")
def test_pages_that_the_kernels_do_not_read_are_refused_by_name(demo_path, capsys):
    assert main(["check", demo_path, "--kv-cache-dtype", "float16"]) == 1
    assert "Set kv_cache_dtype to bfloat16" in capsys.readouterr().out
