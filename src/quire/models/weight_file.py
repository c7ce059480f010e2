"""A safetensors file mapped into memory: its tensors without a copy, and their pages given back once they were used.

What a mapping has touched counts as the process's memory. Without giving it back, a model would be held twice while it
loads: as it is stored and as it is packed. The header was checked before (`tensor_headers.py`).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from quire.base.errors import WeightError
from quire.models.tensor_headers import TensorHeader

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightFile:
    """The tensors of one file."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with path.open("rb") as file:
                # Private and writable, because torch asks for writable memory; nobody writes, so nothing is copied.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise WeightError(f"cannot read weights from {self._name}: {error}") from error

    def tensor(self, header: TensorHeader) -> Tensor:
        """The tensor over the file's own memory; raises WeightError when the file became shorter than it was."""
        dtype = TORCH_DTYPES[header.dtype]
        if header.offset + header.num_bytes > len(self._map):
            raise WeightError(f"cannot read weights from {self._name}: it became shorter while it was read")
        if not header.num_elements:
            return torch.empty(header.shape, dtype=dtype)
        if header.offset % dtype.itemsize:  # legal, and nothing that computes can take it
            copy = bytearray(self.view(header))
            return torch.frombuffer(copy, dtype=dtype).view(header.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=header.num_elements, offset=header.offset)
        return flat.view(header.shape)

    def view(self, header: TensorHeader) -> memoryview:
        """The tensor's bytes."""
        return memoryview(self._map)[header.offset : header.offset + header.num_bytes]

    def release(self, header: TensorHeader) -> None:
        """Give back the memory that reading this tensor took; it can be read again."""
        start = -(-header.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (header.offset + header.num_bytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)
