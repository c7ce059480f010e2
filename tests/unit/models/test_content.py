"""When the bytes of a checkpoint count as known, and when they are read again."""

import os

import pytest

from quire.models.content import PIECE_BYTES, SETTLED_SECONDS, FileNote, content_key, piece_sums


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"weights")
    return path


def _note(path, *, later=SETTLED_SECONDS + 1):
    return FileNote(path.parent, (path.name,), now=path.stat().st_ctime + later)


def test_any_changed_byte_changes_the_key():
    data = bytearray(2 * PIECE_BYTES + 3)
    keys = {content_key({"x": piece_sums(memoryview(data))})}
    for position in (0, PIECE_BYTES - 1, PIECE_BYTES, len(data) - 1):
        data[position] ^= 1
        keys.add(content_key({"x": piece_sums(memoryview(data))}))
    assert len(keys) == 5
    assert content_key({"x": [1], "y": [2]}) != content_key({"x": [2], "y": [1]})


def test_a_file_nobody_touched_is_noted_alike(file):
    assert _note(file).text == _note(file).text


def _overwrite(path):
    status = path.stat()
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path):
    status = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_overwrite, _replace])
def test_a_change_shows_even_with_the_old_size_and_time(file, change):
    """The kernel's own time of change cannot be set back."""
    before = file.stat()
    note = _note(file)
    _wait_for_the_next_tick(file)
    change(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert _note(file).text != note.text


def _wait_for_the_next_tick(file):
    """Two changes within one tick of the file system's clock have one time: what `is_settled` is for."""
    probe = file.with_suffix(".probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= file.stat().st_ctime_ns:
        probe.touch()


def test_a_file_just_written_is_not_settled(file):
    """A second change within one tick of the clock, or through a mapped page, would not show."""
    assert not _note(file, later=SETTLED_SECONDS - 1).is_settled
    assert _note(file).is_settled
