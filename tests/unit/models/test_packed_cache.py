"""Packed weights on disk: whole, private and bounded, or not there."""

import logging
import os
import stat

import pytest
import torch

from quire.base.cpu_kernels import are_usable
from quire.models import packed_cache
from quire.models.content import FileNote
from quire.models.packed_cache import PackedCache, cache_folder
from quire.ops.cpu.weights import PackedMatrix

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")

FORMATS = {"a": (40, 70, "bfloat16"), "b": (16, 64, "int8"), "c": (33, 96, "int4")}


def matrices(seed=None):
    result = {name: PackedMatrix(*shape) for name, shape in FORMATS.items()}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for matrix in result.values():
            matrix.fill(torch.randn(matrix.rows, matrix.columns, generator=generator), 0)
    return result


@pytest.fixture
def cache(tmp_path):
    return PackedCache(tmp_path / "kept")


@pytest.fixture
def file(cache):
    """The one file, after some weights were kept."""
    cache.keep("recipe", "content", matrices(1))
    (path,) = cache.folder.iterdir()
    return path


def restore(cache, *, content="content"):
    found = matrices()
    return found if cache.restore("recipe", content, found, threads=2) else None


def test_what_was_kept_comes_back_bit_for_bit(cache, file):
    found = restore(cache)
    for name, matrix in matrices(1).items():
        assert torch.equal(found[name].storage, matrix.storage)


def test_weights_are_mapped_and_writing_to_them_does_not_reach_the_file(cache, file):
    before = file.read_bytes()
    found = restore(cache)
    assert all(matrix.storage.data_ptr() % 64 == 0 for matrix in found.values())
    found["a"].storage.fill_(7)
    assert file.read_bytes() == before
    assert torch.equal(restore(cache)["a"].storage, matrices(1)["a"].storage)


def test_other_content_is_not_there(cache, file, caplog):
    assert restore(cache, content="other") is None
    assert not caplog.records


def test_folder_and_file_are_their_owners_alone(cache, file):
    """Weights may be private."""
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def _flip(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: _flip(data, 5000), "checksums"),
        (lambda data: _flip(data, 0), "checksums"),
        (lambda data: _flip(data, len(data) - 40), "index"),
        (lambda data: _flip(data, len(data) - 3), "version"),
        (lambda data: data[:-100], "truncated"),
        (lambda data: data[:4096], "truncated"),
        (lambda data: data[:10], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data[4096:], "truncated"),
    ],
)
def test_a_damaged_file_is_one_line_in_the_log_and_is_made_anew(cache, file, damage, reason, caplog):
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert restore(cache) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert str(file) in record.getMessage()
    cache.keep("recipe", "content", matrices(1))
    assert file.read_bytes() == whole


def test_matrices_of_another_shape_are_refused(cache, file, caplog):
    other = {"a": PackedMatrix(40, 70, "bfloat16")}
    assert not cache.restore("recipe", "content", other, threads=1)
    assert "not the model's" in caplog.text


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_not_read(cache, file, mode, caplog):
    """SEC-5: what the kernels multiply with is not somebody else's choice."""
    file.chmod(mode)
    assert restore(cache) is None
    assert "others" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(cache, monkeypatch):
    def fail(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_cache, "_write_all", fail)
    with pytest.raises(OSError, match="No space"):
        cache.keep("recipe", "content", matrices(1))
    assert list(cache.folder.iterdir()) == []


def test_a_write_nobody_wants_any_more_stops(cache):
    with pytest.raises(OSError, match="ended first"):
        cache.keep("recipe", "content", matrices(1), is_wanted=lambda: False)
    assert list(cache.folder.iterdir()) == []


def test_a_half_written_file_of_a_killed_process_goes_in_time(cache, file):
    young, old = cache.folder / "young.part", cache.folder / "old.part"
    for path in (young, old):
        path.touch()
    os.utime(old, (0, 0))
    cache.keep("recipe", "content", matrices(1))
    assert young.exists()
    assert not old.exists()


def test_the_least_recently_used_weights_make_room_and_their_notes_go_with_them(tmp_path):
    PackedCache(tmp_path).keep("recipe", "any", matrices(1))
    (file,) = tmp_path.iterdir()
    cache = PackedCache(tmp_path, limit_bytes=int(3.5 * file.stat().st_size))
    file.unlink()
    note = FileNote(tmp_path, (), now=0)
    for age, content in ((30, "first"), (20, "second")):
        cache.keep("recipe", content, matrices(1))
        cache.note_content("recipe", content, "place", note)
        (path,) = tmp_path.glob(f"recipe-{content}.packed")
        os.utime(path, (1000 - age, 1000 - age))
    assert restore(cache, content="first"), "a use makes it the youngest"
    cache.keep("recipe", "third", matrices(1))
    cache.keep("recipe", "fourth", matrices(1))
    names = {path.name for path in tmp_path.iterdir()}
    assert "recipe-second.packed" not in names
    assert "recipe-second.place.note" not in names
    assert {"recipe-first.packed", "recipe-first.place.note", "recipe-fourth.packed"} <= names


def test_weights_larger_than_the_limit_or_the_disk_are_not_kept(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="that are kept in all"):
        PackedCache(tmp_path, limit_bytes=1000).keep("recipe", "content", matrices(1))
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10_000}))
    with pytest.raises(OSError, match="more than half of what is free"):
        PackedCache(tmp_path).keep("recipe", "content", matrices(1))
    assert list(tmp_path.iterdir()) == []


def test_a_note_counts_for_its_place_and_its_files_only(cache, file, tmp_path):
    (tmp_path / "w").write_bytes(b"1")
    note = FileNote(tmp_path, ("w",), now=0)
    cache.note_content("recipe", "content", "here", note)
    assert cache.known_content("recipe", "here", note) == "content"
    assert cache.known_content("recipe", "there", note) is None
    assert cache.known_content("other", "here", note) is None
    (tmp_path / "w").write_bytes(b"22")
    assert cache.known_content("recipe", "here", FileNote(tmp_path, ("w",), now=0)) is None


def test_the_folder_is_the_users_cache_unless_another_was_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / "quire"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder("auto")) == "/home/someone/.cache/quire"
    assert str(cache_folder("~/kept")) == "/home/someone/kept"
    assert cache_folder("none") is None
