"""How many bytes packed weights take: the arithmetic of csrc/packed.h, for plans that are made without torch."""

from __future__ import annotations

FORMATS = {"float32": 0, "bfloat16": 1, "bfloat16_dot": 2, "int8": 3, "int4": 4}
"""Names of the packed formats and their numbers in csrc/op.h."""
PANEL = 16
"""Rows of a matrix that lie side by side; a matrix takes whole panels."""
_GROUP = 32
_LINE = 64


def packed_bytes(rows: int, columns: int, weight_format: str) -> int:
    """Bytes of a packed matrix."""
    panels = -(-rows // PANEL)
    if weight_format in ("int8", "int4"):
        groups = -(-columns // _GROUP)
        lines = groups * _GROUP * PANEL // (1 if weight_format == "int8" else 2)
        return panels * (lines + -(-groups * PANEL * 2 // _LINE) * _LINE)
    stored = columns + columns % 2 if weight_format == "bfloat16_dot" else columns
    return panels * stored * PANEL * (4 if weight_format == "float32" else 2)


def table_format(weight_format: str) -> str:
    """How a token table is held in a model of this format: four bits cost a vocabulary too much."""
    return "int8" if weight_format == "int4" else weight_format
