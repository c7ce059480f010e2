"""Loading with kept weights: the second time without packing, and never with what the checkpoint was before."""

import os
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from quire.attention import select_backend
from quire.base.cpu_kernels import are_usable
from quire.base.errors import WeightError
from quire.layers.context import BuildContext
from quire.models import content, kept_weights
from quire.models.inspect import inspect_model
from quire.models.kept_weights import KeptWeights
from quire.models.loader import build_model, load_model
from quire.models.packed_cache import PackedCache
from quire.ops.cpu.weights import PackedMatrix
from quire.quant.packed import PackedSlot, PackedWeights

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")


def context(weight_format="bfloat16"):
    return BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=select_backend("cpu", dtype=torch.float32),
        max_model_len=64,
        scheme=PackedWeights(weight_format),
    )


@pytest.fixture(autouse=True)
def _keep_everything(monkeypatch):
    """However fast it was packed, and however young the files are."""
    monkeypatch.setattr(kept_weights, "WORTH_SECONDS", 0)
    monkeypatch.setattr(content, "SETTLED_SECONDS", -1)


@pytest.fixture
def tensors(checkpoint_dir):
    torch.manual_seed(3)
    info = inspect_model(checkpoint_dir.config().path, require_weights=False)
    return {name: torch.randn(slot.shape) for name, slot in build_model(info, context()).weight_slots().items()}


@pytest.fixture
def cache(tmp_path_factory):
    return PackedCache(tmp_path_factory.mktemp("cache") / "quire")


@pytest.fixture
def packed(monkeypatch):
    """The number of tensors packed since it was last asked."""
    calls = []
    fill = PackedMatrix.fill
    monkeypatch.setattr(PackedMatrix, "fill", lambda *args, **options: (calls.append(1), fill(*args, **options)))

    def count():
        number = len(calls)
        calls.clear()
        return number

    return count


def load(checkpoint_dir, cache, weight_format="bfloat16"):
    """Load, and let what is kept be written; returns every slot's target by name."""
    model = load_model(inspect_model(checkpoint_dir.path), context(weight_format), cache=cache)
    for thread in threading.enumerate():
        if thread.name == "keep-weights":
            thread.join()
    return {name: slot.target for name, slot in model.weight_slots().items()}


def save(checkpoint_dir, tensors):
    save_file(tensors, checkpoint_dir.path / "model.safetensors")


def same(found, expected):
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "int8", "int4"])
def test_the_second_load_packs_nothing_and_holds_the_same(checkpoint_dir, tensors, cache, packed, weight_format):
    save(checkpoint_dir, tensors)
    first = load(checkpoint_dir, cache, weight_format)
    assert packed() > 0
    assert same(load(checkpoint_dir, cache, weight_format), first)
    assert packed() == 0


def test_each_format_has_its_own(checkpoint_dir, tensors, cache, packed):
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache, "int8")
    packed()
    load(checkpoint_dir, cache, "int4")
    assert packed() > 0


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("packing_code", lambda: "other sources"),
        ("chosen_instruction_set", lambda: "another"),
        ("LAYOUT_VERSION", 99),
    ],
)
def test_what_another_build_has_packed_is_not_taken(checkpoint_dir, tensors, cache, packed, monkeypatch, target, value):
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    packed()
    monkeypatch.setattr(kept_weights, target, value)
    load(checkpoint_dir, cache)
    assert packed() > 0


def test_another_configuration_is_another_model(checkpoint_dir, tensors, cache, packed):
    """The order in which rows are packed may depend on any number of config.json."""
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    packed()
    checkpoint_dir.config(rope_theta=5000.0)
    load(checkpoint_dir, cache)
    assert packed() > 0


def test_a_changed_checkpoint_is_packed_again_even_with_its_old_size_and_times(checkpoint_dir, tensors, cache, packed):
    """A restored backup, or an `rsync -t`: size and modification time are no content."""
    save(checkpoint_dir, tensors)
    before = load(checkpoint_dir, cache)
    packed()
    path = checkpoint_dir.path / "model.safetensors"
    status = path.stat()
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 4] += 1
    time.sleep(0.02)  # above a tick of the file system's clock, which the window of the fixture leaves out
    save(checkpoint_dir, tensors)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = load(checkpoint_dir, cache)
    assert packed() > 0
    assert not torch.equal(after[name], before[name])


def test_a_copy_of_the_checkpoint_uses_the_same_file(checkpoint_dir, tensors, cache, packed):
    """A new container has new inodes and times; the content is what counts."""
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    packed()
    path = checkpoint_dir.path / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    load(checkpoint_dir, cache)
    assert packed() == 0


def test_weights_that_are_known_are_not_read_at_all(checkpoint_dir, tensors, cache, packed, monkeypatch):
    save(checkpoint_dir, tensors)
    first = load(checkpoint_dir, cache)
    monkeypatch.setattr(KeptWeights, "_read_content", lambda self: pytest.fail("read"))
    assert same(load(checkpoint_dir, cache), first)


def test_weights_just_written_are_read_once_more(checkpoint_dir, tensors, cache, packed, monkeypatch):
    """A change in the same tick of the clock as the one that was seen would not show."""
    monkeypatch.setattr(content, "SETTLED_SECONDS", 60)
    reads = []
    read = KeptWeights._read_content
    monkeypatch.setattr(KeptWeights, "_read_content", lambda self: (reads.append(1), read(self))[1])
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    packed()
    load(checkpoint_dir, cache)
    assert (len(reads), packed()) == (1, 0)


def test_weights_that_are_not_packed_come_from_the_checkpoint_each_time(checkpoint_dir, tensors, cache, packed):
    """Norms are small, and kept nowhere else."""
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    packed()
    tensors["model.norm.weight"] += 1
    save(checkpoint_dir, tensors)
    found = load(checkpoint_dir, cache)
    assert packed() == 0
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"])


def test_a_tied_head_that_differs_is_refused_also_with_kept_weights(checkpoint_dir, tensors, cache):
    """S7: the stored copy of a tied head belongs to the content, because only packing compares it."""
    del tensors["lm_head.weight"]
    checkpoint_dir.config(tie_word_embeddings=True)
    copy = tensors["model.embed_tokens.weight"].clone()
    save(checkpoint_dir, tensors | {"lm_head.weight": copy})
    load(checkpoint_dir, cache)
    copy[0, 0] += 1
    save(checkpoint_dir, tensors | {"lm_head.weight": copy})
    with pytest.raises(WeightError, match="differs from the embedding"):
        load(checkpoint_dir, cache)


def test_a_model_that_packs_in_no_time_is_not_kept(checkpoint_dir, tensors, cache, monkeypatch):
    monkeypatch.setattr(kept_weights, "WORTH_SECONDS", 3600)
    save(checkpoint_dir, tensors)
    load(checkpoint_dir, cache)
    assert not cache.folder.exists()


def test_a_folder_that_cannot_be_written_is_one_line_in_the_log(checkpoint_dir, tensors, tmp_path, packed, caplog):
    save(checkpoint_dir, tensors)
    (tmp_path / "file").touch()
    cache = PackedCache(tmp_path / "file" / "quire")
    first = load(checkpoint_dir, cache)
    (record,) = caplog.records
    assert "packed weights cannot be kept in" in record.getMessage()
    assert same(load(checkpoint_dir, cache), first)


def test_files_that_changed_while_they_were_packed_are_not_kept(checkpoint_dir, tensors, cache, monkeypatch):
    """What was packed is then neither the old content nor the new."""
    save(checkpoint_dir, tensors)
    path = checkpoint_dir.path / "model.safetensors"
    load_slot = PackedSlot.load
    monkeypatch.setattr(PackedSlot, "load", lambda self, tensor: (load_slot(self, tensor), os.utime(path))[0])
    load(checkpoint_dir, cache)
    assert not cache.folder.exists()
