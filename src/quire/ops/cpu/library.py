"""Declares the C interface of the compiled kernels. Knows no op."""

from __future__ import annotations

import ctypes
from functools import cache

from quire.base.cpu_kernels import KERNELS_PATH, open_kernels
from quire.base.cpu_kernels import REFERENCE as REFERENCE
from quire.base.cpu_kernels import are_usable as are_usable
from quire.base.cpu_kernels import chosen_instruction_set as chosen_instruction_set
from quire.base.cpu_kernels import instruction_sets as instruction_sets


class OpRecord(ctypes.Structure):
    """`Op` of csrc/op.h."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("p", ctypes.c_void_p * 8),
        ("n", ctypes.c_int64 * 12),
        ("f", ctypes.c_float * 4),
    ]


class PlanRecord(ctypes.Structure):
    """`Plan` of csrc/op.h."""

    _fields_ = [
        ("num_rows", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("table_stride", ctypes.c_int64),
        ("first_tokens", ctypes.c_void_p),
        ("query_lens", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("page_tables", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
    ]


class PackRecord(ctypes.Structure):
    """`PackJob` of csrc/op.h."""

    _fields_ = [
        ("source", ctypes.c_void_p),
        ("source_type", ctypes.c_int64),
        ("source_stride", ctypes.c_int64),
        ("column_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("packed", ctypes.c_void_p),
        ("format", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
    ]


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "quire_op_bytes": (ctypes.c_int64, ()),
    "quire_instruction_sets": (ctypes.c_int64, (ctypes.c_char_p, ctypes.c_int64)),
    "quire_engine_new": (ctypes.c_void_p, (ctypes.c_int64, ctypes.c_char_p)),
    "quire_engine_free": (None, (ctypes.c_void_p,)),
    "quire_run": (
        ctypes.c_int64,
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ),
    "quire_pack": (None, (ctypes.c_void_p, ctypes.c_void_p)),
    "quire_panel_bytes": (ctypes.c_int64, (ctypes.c_int64, ctypes.c_int64)),
    "quire_ceiling_operations": (ctypes.c_int64, (ctypes.c_char_p, ctypes.c_int64)),
    "quire_ceiling_compute": (
        ctypes.c_double,
        (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
    ),
    "quire_ceiling_read": (
        ctypes.c_double,
        (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
    ),
}


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built.

    Raises:
        ImportError: they were built from other sources.
    """
    library = open_kernels()
    if library is None:
        return None
    is_complete = all(hasattr(library, name) for name in _SIGNATURES)
    if not is_complete or library.quire_op_bytes() != ctypes.sizeof(OpRecord):
        raise ImportError(f"{KERNELS_PATH.name} was built from other sources than this quire; reinstall quire")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
