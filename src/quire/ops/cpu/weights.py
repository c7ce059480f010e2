"""Weight matrices packed into the panels that the kernels stream (csrc/packed.h). Knows layouts, not layers."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.cpu.library import PackRecord, load_library
from quire.ops.cpu.program import current_pool

FORMATS = {"float32": 0, "bfloat16": 1, "bfloat16_dot": 2, "int8": 3, "int4": 4}
"""Names of the packed formats and their numbers in csrc/op.h."""
_SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PANEL = 16
_GROUP = 32
_LINE = 64


def packed_bytes(rows: int, columns: int, weight_format: str) -> int:
    """Bytes of a packed matrix."""
    panels = -(-rows // _PANEL)
    if weight_format in ("int8", "int4"):
        groups = -(-columns // _GROUP)
        lines = groups * _GROUP * _PANEL // (1 if weight_format == "int8" else 2)
        return panels * (lines + -(-groups * _PANEL * 2 // _LINE) * _LINE)
    stored = columns + columns % 2 if weight_format == "bfloat16_dot" else columns
    return panels * stored * _PANEL * (4 if weight_format == "float32" else 2)


class PackedMatrix:
    """A matrix [rows, columns] of a linear layer or a token table, or `count` of them, each in whole panels."""

    def __init__(self, rows: int, columns: int, weight_format: str, *, count: int = 1) -> None:
        library = load_library()
        assert library is not None, "packing needs the compiled kernels"
        self.rows, self.columns, self.weight_format, self.count = rows, columns, weight_format, count
        size = count * packed_bytes(rows, columns, weight_format)
        per_panel = library.quire_panel_bytes(FORMATS[weight_format], columns)
        assert size == count * per_panel * -(-rows // _PANEL), "csrc/packed.h and this file disagree"
        # The kernels load whole lines; the last panel's missing columns are zeros.
        storage = torch.zeros(size + _LINE, dtype=torch.uint8)
        start = -storage.data_ptr() % _LINE
        self.storage = storage[start : start + size]

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
            first_row=index * -(-self.rows // _PANEL) * _PANEL + first_row,
        )
        current_pool().pack(job)
