"""One checkpoint's packed weights between starts: found again if nothing about them changed, else kept for the next.

A cache file belongs to a *recipe*, which is all that decides what packing makes of given bytes: the kernels and the
code around them, the instruction set, the configuration, names and shapes; and to the *content* of the tensors packed.
Writing is left to a thread of low priority, so that the first start takes no longer for it; a process that ends
meanwhile waits for it some seconds.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from quire import __version__
from quire.base.cpu_kernels import KERNELS_PATH, chosen_instruction_set
from quire.models.checkpoint import Checkpoint
from quire.models.content import FileNote, content_key, layout_key, piece_sums
from quire.models.packed_cache import PackedCache
from quire.models.tensor_headers import TensorHeader
from quire.models.weight_file import WeightFile
from quire.ops.cpu.weights import PackedMatrix

logger = logging.getLogger(__name__)

WORTH_SECONDS = 0.25
"""Models that pack faster are not kept: mapping them again would save less than anybody notices."""
LAYOUT_VERSION = 1
"""Of what a cache file holds; raise it when the same sources should pack to something else."""
_EXIT_SECONDS = 3.5
"""What a process that ends gives the writer; the engine's is killed after 5."""
_NICE = 5
"""A quarter of a core that others want: the first requests hardly feel it, and it ends in time."""
_PACKING_SOURCES = ("models", "layers", "quant", "ops")
_KEY_LETTERS = 32


class KeptWeights:
    """The packed weights of one load: `restore` them, or `add` every tensor while it is packed and then `keep` them."""

    def __init__(
        self,
        cache: PackedCache,
        checkpoint: Checkpoint,
        *,
        sources: Mapping[str, TensorHeader],
        slots: Mapping[str, PackedMatrix],
    ) -> None:
        self._cache = cache
        self._checkpoint = checkpoint
        self._sources = sources
        first: dict[int, tuple[str, PackedMatrix]] = {}
        for name, matrix in slots.items():
            first.setdefault(id(matrix), (name, matrix))
        self._matrices = dict(first.values())
        """By the first tensor that goes into each."""
        self._recipe = _recipe(checkpoint, sources, self._matrices)
        self._place = _key(str(checkpoint.path.resolve()))
        self._note = self._note_now()
        self._sums: dict[str, Future[list[int]]] = {}
        self._summing = ThreadPoolExecutor(1, "checksums")

    def restore(self) -> bool:
        """Fill the matrices with what is kept; False where it is not."""
        if not self._cache.has_any(self._recipe):
            return False
        content = self._cache.known_content(self._recipe, self._place, self._note) or self._read_content()
        threads = torch.get_num_threads()
        return self._cache.restore(self._recipe, content, self._matrices, threads=threads)

    def add(self, name: str, data: memoryview) -> None:
        """Take in a tensor that is about to be loaded, if it is packed; `data` must stay until `wait`."""
        if name in self._sources:
            self._sums[name] = self._summing.submit(piece_sums, data)

    def wait(self) -> None:
        """Until all that was added has been read."""
        if self._sums:
            self._sums[next(reversed(self._sums))].result()  # one thread, so the last one added ends last

    def keep(self, *, seconds: float) -> None:
        """Write the matrices, which took so long to pack, in the background."""
        self._summing.shutdown(wait=False)
        if seconds < WORTH_SECONDS or self._note_now().text != self._note.text:
            return
        content = content_key({name: summed.result() for name, summed in self._sums.items()})
        _Writer(self, content).start()

    def write(self, content: str, stop: threading.Event) -> None:
        """Write the matrices now, and what the files that were read are like; one line in the log says how it went."""
        folder = self._cache.folder
        try:
            self._cache.keep(self._recipe, content, self._matrices, is_wanted=lambda: not stop.is_set())
            self._remember(content)
            logger.info("packed weights are kept in %s for the next start", folder)
        except OSError as error:
            logger.warning("packed weights cannot be kept in %s, so the next start packs again: %s", folder, error)

    def _read_content(self) -> str:
        """The content of the files, read in full: there is no note of it, or they were touched since."""
        files = {header.file: WeightFile(self._checkpoint.path / header.file) for header in self._sources.values()}

        def sums(header: TensorHeader) -> list[int]:
            result = piece_sums(files[header.file].view(header))
            files[header.file].release(header)
            return result

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            content = content_key(dict(zip(self._sources, pool.map(sums, self._sources.values()), strict=True)))
        try:
            self._remember(content)
        except OSError as error:
            logger.warning(
                "cannot write to %s, so the next start reads the weights again: %s", self._cache.folder, error
            )
        return content

    def _remember(self, content: str) -> None:
        if self._note.is_settled and self._note_now().text == self._note.text:
            self._cache.note_content(self._recipe, content, self._place, self._note)

    def _note_now(self) -> FileNote:
        return FileNote(self._checkpoint.path, self._checkpoint.weight_files, now=time.time())


class _Writer(threading.Thread):
    """Writes kept weights beside the first requests."""

    def __init__(self, weights: KeptWeights, content: str) -> None:
        super().__init__(name="keep-weights", daemon=True)
        self._weights = weights
        self._content = content
        self._stop_early = threading.Event()
        atexit.register(self._finish)

    def run(self) -> None:
        """Write, once."""
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # there, of this thread alone
        self._weights.write(self._content, self._stop_early)
        atexit.unregister(self._finish)

    def _finish(self) -> None:
        self.join(_EXIT_SECONDS)
        self._stop_early.set()
        self.join()


def _recipe(checkpoint: Checkpoint, sources: Mapping[str, TensorHeader], matrices: Mapping[str, PackedMatrix]) -> str:
    shapes = [(name, m.rows, m.columns, m.weight_format, m.count) for name, m in matrices.items()]
    decided_by = [
        LAYOUT_VERSION,
        packing_code(),
        chosen_instruction_set(),
        checkpoint.config,
        layout_key(sources),
        shapes,
    ]
    return _key(json.dumps(decided_by))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LETTERS]


@cache
def packing_code() -> str:
    """One name for the code that packs: the compiled kernels, and the sources that say what goes where."""
    content = hashlib.sha256(__version__.encode() + KERNELS_PATH.read_bytes())
    package = Path(__file__).parents[1]
    for folder in _PACKING_SOURCES:
        for path in sorted((package / folder).rglob("*.py")):
            content.update(path.read_bytes())
    return content.hexdigest()
