"""How many bytes packed weights take: the arithmetic of csrc/packed.h, for plans that are made without torch."""

from __future__ import annotations

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
"""Names of the packed formats and their numbers in csrc/op.h."""
PANEL = 16
"""Rows of a matrix that lie side by side; a matrix takes whole panels."""


def packed_bytes(rows: int, columns: int, weight_format: str) -> int:
    """Bytes of a packed matrix."""
    groups = {"int8": (64, 64 * PANEL + 4 * PANEL), "int4": (32, 32 * PANEL // 2 + 2 * PANEL)}
    panels = -(-rows // PANEL)
    if weight_format in groups:
        size, block = groups[weight_format]
        return panels * -(-columns // size) * block
    return panels * columns * PANEL * {"float32": 4, "bfloat16": 2}[weight_format]


def table_format(weight_format: str) -> str:
    """How a token table is held in a model of this format: four bits cost a vocabulary too much."""
    return "int8" if weight_format == "int4" else weight_format
