"""Weight matrices packed into the panels that the kernels stream (csrc/packed.h). Knows layouts, not layers."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.base.host_memory import zeroed_memory
from quire.base.packed_layout import FORMATS as FORMATS
from quire.base.packed_layout import PANEL
from quire.base.packed_layout import packed_bytes as packed_bytes
from quire.ops.cpu.library import PackRecord, load_library
from quire.ops.cpu.program import current_pool

_SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LINE_BYTES = 64


class PackedMatrix:
    """A matrix [rows, columns] of a linear layer or a token table, or `count` of them, each in whole panels."""

    def __init__(self, rows: int, columns: int, weight_format: str, *, count: int = 1) -> None:
        library = load_library()
        assert library is not None, "packing needs the compiled kernels"
        self.rows, self.columns, self.weight_format, self.count = rows, columns, weight_format, count
        size = count * packed_bytes(rows, columns, weight_format)
        per_panel = library.quire_panel_bytes(FORMATS[weight_format], columns)
        assert size == count * per_panel * -(-rows // PANEL), "csrc/packed.h and base/packed_layout.py disagree"
        # Takes no memory where kept weights come in its place. Zeros remain as the last panel's missing columns. The
        # spare line is there because the kernels load whole lines.
        self.storage = torch.frombuffer(zeroed_memory(size + _LINE_BYTES), dtype=torch.uint8, count=size)

    def fill(self, tensor: Tensor, first_row: int, *, index: int = 0) -> None:
        """Pack `tensor` [n, columns] as the rows from `first_row` on, of matrix `index`."""
        if tensor.dtype not in _SOURCES:
            tensor = tensor.float()
        job = PackRecord(
            source=tensor.data_ptr(),
            source_type=_SOURCES[tensor.dtype],
            source_stride=tensor.stride(0),
            column_stride=tensor.stride(1),
            rows=tensor.shape[0],
            k=self.columns,
            packed=self.storage.data_ptr(),
            format=FORMATS[self.weight_format],
            first_row=index * -(-self.rows // PANEL) * PANEL + first_row,
        )
        current_pool().pack(job)
