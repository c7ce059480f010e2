"""Packed weights kept between starts: one file per checkpoint, weight format and build of the kernels, mapped as it is.

A file holds the matrices one after the other, each from a page boundary on, then an index in JSON with the shape and
the checksums of each, then a trailer. It is written under another name and renamed when whole; every byte is checked
before it is used. The least recently used files go when all together exceed the limit: a use sets a file's modification
time, because access times are switched off on many machines. Weights may be private, so folder and files are their
owner's alone, and files that others could have written are not read.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire.models.content import PIECE_BYTES, FileNote, piece_sums
from quire.ops.cpu.weights import PackedMatrix

logger = logging.getLogger(__name__)

LIMIT_BYTES = 32 * 2**30
"""All files together."""
_SUFFIX = ".packed"
_NOTE = ".note"
_PART = ".part"
_FORGOTTEN_SECONDS = 3600
"""Age at which an unfinished file is taken for one whose writer was killed."""
_MAGIC = b"quirepk1"
_TRAILER = 24
"""Bytes of the index's length, its checksum and `_MAGIC`, eight each, at the end of a file."""
_ALIGNMENT = 4096


def cache_folder(setting: str) -> Path | None:
    """The folder that the setting `weight_cache` means; None where nothing is to be kept."""
    if setting == "none":
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "quire"


class DamagedError(Exception):
    """A cache file does not hold what it should."""


class PackedCache:
    """A folder of packed weights."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self._limit = limit_bytes

    def has_any(self, recipe: str) -> bool:
        """Whether weights packed in this way are here, of whatever content."""
        return any(self.folder.glob(f"{recipe}-*{_SUFFIX}"))

    def restore(self, recipe: str, content: str, matrices: Mapping[str, PackedMatrix], *, threads: int) -> bool:
        """Let `matrices` hold the kept weights, mapped; False when there are none, or none that are whole."""
        path = self._path(recipe, content)
        try:
            mapped = _read(path, matrices, threads)
        except FileNotFoundError:
            return False
        except (DamagedError, OSError) as error:
            logger.warning("packed weights kept in %s are not used and made anew: %s", path, error)
            return False
        for name, storage in mapped.items():
            matrices[name].storage = storage
        os.utime(path)
        return True

    def keep(
        self,
        recipe: str,
        content: str,
        matrices: Mapping[str, PackedMatrix],
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write the weights, and remove what then is too much; raises OSError, also when it is no longer wanted."""
        size = sum(matrix.storage.numel() for matrix in matrices.values())
        if size > self._limit:
            raise OSError(f"{size} bytes are more than the {self._limit} that are kept in all")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        if shutil.disk_usage(self.folder).free < 2 * size:
            raise OSError(f"{size} bytes would take more than half of what is free there")
        self._make_room(size)
        with self._whole(self._path(recipe, content)) as handle:
            _write(handle, matrices, is_wanted)

    def known_content(self, recipe: str, place: str, note: FileNote) -> str | None:
        """The content of files at `place`, if they are what they were when it was noted."""
        for path in self.folder.glob(f"{recipe}-*.{place}{_NOTE}"):
            try:
                if path.read_text() == note.text:
                    return path.name.removeprefix(f"{recipe}-").removesuffix(f".{place}{_NOTE}")
            except (OSError, ValueError):
                continue  # one that cannot be read tells nothing; the content is read instead
        return None

    def note_content(self, recipe: str, content: str, place: str, note: FileNote) -> None:
        """Remember what the files at `place` were like when they had this content; raises OSError."""
        with self._whole(self.folder / f"{recipe}-{content}.{place}{_NOTE}") as handle:
            _write_all(handle, memoryview(note.text.encode()))

    @contextmanager
    def _whole(self, path: Path) -> Iterator[int]:
        """A file to write, mode 0600, that takes the name `path` once it is whole, and no name before or otherwise."""
        handle, part = tempfile.mkstemp(suffix=_PART, dir=self.folder)
        try:
            with os.fdopen(handle, "wb", buffering=0):
                yield handle
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def _path(self, recipe: str, content: str) -> Path:
        return self.folder / f"{recipe}-{content}{_SUFFIX}"

    def _sweep(self) -> None:
        for path in self.folder.glob(f"*{_PART}"):
            if time.time() - path.stat().st_mtime > _FORGOTTEN_SECONDS:
                path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        found = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
        total = size + sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if total > self._limit:
                total -= status.st_size
                for gone in (path, *self.folder.glob(f"{path.stem}.*{_NOTE}")):
                    gone.unlink(missing_ok=True)


def _write(handle: int, matrices: Mapping[str, PackedMatrix], is_wanted: Callable[[], bool]) -> None:
    index = {}
    position = 0
    for name, matrix in matrices.items():
        data = matrix.storage.numpy().data
        os.lseek(handle, position, os.SEEK_SET)
        sums = []
        for start in range(0, len(data), PIECE_BYTES):
            if not is_wanted():
                raise OSError("the process ended first")
            piece = data[start : start + PIECE_BYTES]
            sums.append(zlib.crc32(piece))
            _write_all(handle, piece)
        index[name] = {**_shape(matrix), "begin": position, "sums": sums}
        position = -(-(position + len(data)) // _ALIGNMENT) * _ALIGNMENT
    text = json.dumps(index).encode()
    trailer = len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(8, "little") + _MAGIC
    os.lseek(handle, position, os.SEEK_SET)
    _write_all(handle, memoryview(text + trailer))


def _write_all(handle: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(handle, data) :]


def _read(path: Path, matrices: Mapping[str, PackedMatrix], threads: int) -> dict[str, Tensor]:
    """The kept matrices over the file's own memory; raises DamagedError, OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise DamagedError("others than its owner may have written it")
        if status.st_size < _TRAILER:
            raise DamagedError("it is truncated")
        # Private: pages are shared with every process that maps them, and a write could not reach the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    index = _read_index(mapped)
    if {name: _shape(matrix) for name, matrix in matrices.items()} != {
        name: {key: entry.get(key) for key in ("rows", "columns", "format", "count")} for name, entry in index.items()
    }:
        raise DamagedError("its matrices are not the model's")
    storages = {name: _mapped(mapped, index[name]["begin"], m.storage.numel()) for name, m in matrices.items()}
    with ThreadPoolExecutor(threads) as pool:
        views = [storage.numpy().data for storage in storages.values()]
        if list(pool.map(piece_sums, views)) != [index[name]["sums"] for name in storages]:
            raise DamagedError("its checksums are wrong")
    return storages


def _read_index(mapped: mmap.mmap) -> dict[str, Any]:
    length, checksum, magic = mapped[-24:-16], mapped[-16:-8], mapped[-8:]
    begin = len(mapped) - _TRAILER - int.from_bytes(length, "little")
    if magic != _MAGIC or begin < 0:
        raise DamagedError("it is truncated or of another version")
    text = mapped[begin:-_TRAILER]
    if zlib.crc32(text) != int.from_bytes(checksum, "little"):
        raise DamagedError("its index is damaged")
    index: dict[str, Any] = json.loads(text)
    return index


def _mapped(mapped: mmap.mmap, begin: int, count: int) -> Tensor:
    if begin + count > len(mapped):
        raise DamagedError("it is truncated")
    return torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=begin)


def _shape(matrix: PackedMatrix) -> dict[str, Any]:
    return {"rows": matrix.rows, "columns": matrix.columns, "format": matrix.weight_format, "count": matrix.count}
