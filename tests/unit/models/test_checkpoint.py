"""A checkpoint directory is described by its files, and nothing in it runs or leads elsewhere."""

import json
import pickle

import pytest

from quire.base.errors import ConfigError, WeightError
from quire.models.checkpoint import Checkpoint

SHARDS = {"one.safetensors": {"a": (2, 2)}, "two.safetensors": {"b": (4,), "c": (1, 3)}}


def write_sharded(checkpoint_dir, weight_map=None):
    for name, shapes in SHARDS.items():
        checkpoint_dir.tensors(name, shapes)
    whole = {tensor: file for file, shapes in SHARDS.items() for tensor in shapes}
    checkpoint_dir.json("model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map or whole})
    return Checkpoint(checkpoint_dir.path)


def test_a_single_file_is_found_and_described(checkpoint_dir):
    """S7"""
    checkpoint_dir.config().tensors("model.safetensors", {"x": (3, 5)}, "BF16")
    checkpoint = Checkpoint(checkpoint_dir.path)
    assert checkpoint.weight_files == ("model.safetensors",)
    assert checkpoint.tensors["x"].shape == (3, 5)
    assert checkpoint.config["model_type"] == "llama"


def test_shards_are_found_through_the_index(checkpoint_dir):
    """S7"""
    checkpoint = write_sharded(checkpoint_dir)
    assert checkpoint.weight_files == ("one.safetensors", "two.safetensors")
    assert {name: header.file for name, header in checkpoint.tensors.items()} == {
        "a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize(
    "file",
    ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..\\one.safetensors", "one.bin", "..", "", 7, None,
     ".hidden.safetensors", "c:one.safetensors", "one\0.safetensors"],
    ids=repr,
)  # fmt: skip
def test_a_shard_name_that_leaves_the_directory_is_refused(checkpoint_dir, file):
    """SEC-8: no name found in a file is joined to a path unless it is a plain file name."""
    checkpoint = write_sharded(checkpoint_dir, {"a": file})
    with pytest.raises(WeightError, match="same directory"):
        _ = checkpoint.tensors


def test_a_missing_shard_is_named(checkpoint_dir):
    checkpoint = write_sharded(checkpoint_dir)
    (checkpoint_dir.path / "two.safetensors").unlink()
    with pytest.raises(WeightError, match=r"missing: two\.safetensors"):
        _ = checkpoint.tensors


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(checkpoint_dir):
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    with pytest.raises(WeightError, match="'b' is in one"):
        _ = write_sharded(checkpoint_dir, weight_map).tensors


def test_a_tensor_in_two_shards_is_refused(checkpoint_dir):
    checkpoint = write_sharded(checkpoint_dir)
    checkpoint_dir.tensors("two.safetensors", {"a": (2, 2), "b": (4,), "c": (1, 3)})
    with pytest.raises(WeightError, match="in both"):
        _ = checkpoint.tensors


@pytest.mark.parametrize("weight_map", [[], {}, "x", 3])
def test_an_index_without_a_weight_map_is_refused(checkpoint_dir, weight_map):
    checkpoint_dir.tensors("one.safetensors", {"a": (1,)})
    checkpoint_dir.json("model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(WeightError, match="weight_map"):
        _ = Checkpoint(checkpoint_dir.path).tensors


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "a-1-of-2.bin"])
def test_pickled_weights_are_refused_with_the_way_out_and_never_opened(checkpoint_dir, name):
    """SEC-3, SEC-1: a malicious pickle in the directory leaves no canary."""
    canary = checkpoint_dir.path / "canary"
    checkpoint_dir.config()
    (checkpoint_dir.path / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(WeightError, match="safe_serialization"):
        _ = Checkpoint(checkpoint_dir.path).tensors
    assert not canary.exists()


def test_left_over_training_state_is_not_mistaken_for_weights(checkpoint_dir):
    checkpoint_dir.config()
    (checkpoint_dir.path / "training_args.bin").write_bytes(b"x")
    checkpoint = Checkpoint(checkpoint_dir.path)
    assert not checkpoint.has_weights
    with pytest.raises(WeightError, match="neither"):
        _ = checkpoint.tensors


def test_gguf_weights_are_refused_by_name(checkpoint_dir):
    (checkpoint_dir.path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightError, match="GGUF"):
        _ = Checkpoint(checkpoint_dir.path).tensors


def test_a_directory_without_config_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        _ = Checkpoint(tmp_path).config


def test_an_adapter_directory_is_named_as_such(checkpoint_dir):
    checkpoint_dir.json("adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(ConfigError, match="LoRA"):
        _ = Checkpoint(checkpoint_dir.path).config


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 50_000])
def test_a_damaged_config_is_a_weight_error(tmp_path, text):
    """SEC-7"""
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(WeightError, match=r"config\.json is damaged"):
        _ = Checkpoint(tmp_path).config


def test_a_config_over_the_size_cap_is_not_read(tmp_path):
    """SEC-7"""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)  # sparse: takes no disk
    with pytest.raises(WeightError, match="at most"):
        _ = Checkpoint(tmp_path).config


@pytest.mark.parametrize(("size", "expected"), [(10**10, 10**10), (-1, None), ("x", None), (True, None), (0, None)])
def test_the_index_tells_the_weight_bytes_before_the_weights_are_here(checkpoint_dir, size, expected):
    """S125"""
    index = {"metadata": {"total_size": size}, "weight_map": {"a": "one.safetensors"}}
    checkpoint_dir.path.joinpath("model.safetensors.index.json").write_text(json.dumps(index))
    assert Checkpoint(checkpoint_dir.path).declared_weight_bytes == expected
