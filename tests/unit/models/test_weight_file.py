"""Tensors over a mapped file: what they hold, and what memory reading them takes."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quire.base.errors import WeightError
from quire.models.tensor_headers import read_tensor_headers
from quire.models.weight_file import WeightFile


def _resident_file_bytes():
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", text)[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_is_what_was_saved(tmp_path, dtype):
    """S7"""
    path = tmp_path / "m.safetensors"
    saved = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "none": torch.empty(0, 4, dtype=dtype)}
    save_file(saved, path)
    file = WeightFile(path)
    for name, header in read_tensor_headers(path).items():
        assert torch.equal(file.tensor(header), saved[name])
        assert bytes(file.view(header)) == saved[name].view(torch.uint8).numpy().tobytes()


def test_a_tensor_at_an_odd_offset_is_read_as_well(checkpoint_dir):
    """S7: the format does not align what is stored."""
    header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} '
    header += b" " * ((1 - len(header) - 8) % 4)
    values = torch.tensor([1.5, -2.0])
    checkpoint_dir.raw("m.safetensors", header, values.numpy().tobytes())
    path = checkpoint_dir.path / "m.safetensors"
    (found,) = read_tensor_headers(path).values()
    assert found.offset % 4 == 1
    assert torch.equal(WeightFile(path).tensor(found), values)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_of_a_released_tensor_is_given_back_and_it_can_be_read_again(tmp_path):
    """S10: a model is never held both as it is stored and as it is packed."""
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.ones(16 * 2**20)}, path)
    (header,) = read_tensor_headers(path).values()
    file = WeightFile(path)
    before = _resident_file_bytes()
    assert file.tensor(header).sum() == 16 * 2**20
    assert _resident_file_bytes() - before > 60 * 2**20
    file.release(header)
    assert _resident_file_bytes() - before < 8 * 2**20
    assert file.tensor(header).sum() == 16 * 2**20


def test_a_file_that_became_shorter_is_named(tmp_path):
    """S79: replaced by another one between reading its header and its tensors."""
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    (header,) = read_tensor_headers(path).values()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightError, match=r"m\.safetensors: it became shorter"):
        WeightFile(path).tensor(header)


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_file_that_cannot_be_mapped_is_named(tmp_path, content):
    """S79"""
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightError, match=r"cannot read weights from m\.safetensors"):
        WeightFile(path)
