"""Which compiled CPU kernels are there, and which of their instruction sets this machine can run.

The library is plain C functions on addresses and sizes: it links neither torch nor Python, so one build serves every
version of both. Where it was not built, quire runs on the reference ops. Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

KERNELS_PATH = Path(__file__).parents[1] / "ops" / "cpu" / "kernels.so"
ISA_VARIABLE = "QUIRE_CPU_ISA"
"""Environment variable: the instruction set to use (a name of `instruction_sets`), or `reference` for none of them."""
REFERENCE = "reference"
BF16_DOTS = frozenset({"avx512bf16"})
"""Instruction sets with dot products of bfloat16 pairs: twice the rate of float32."""


@cache
def open_kernels() -> ctypes.CDLL | None:
    """The library as it is, or None where it was not built."""
    return ctypes.CDLL(str(KERNELS_PATH)) if KERNELS_PATH.exists() else None


@cache
def instruction_sets() -> tuple[str, ...]:
    """What the kernels can use on this machine, best first; empty where there are none."""
    library = open_kernels()
    if library is None:
        return ()
    buffer = ctypes.create_string_buffer(256)
    library.quire_instruction_sets(buffer, ctypes.c_int64(len(buffer)))
    return tuple(buffer.value.decode().split())


@cache
def chosen_instruction_set() -> str:
    """The instruction set to run on: the best, or what the environment asks for; `reference` where there is none.

    Raises:
        ImportError: the environment asks for one that is not to be had.
    """
    usable = instruction_sets()
    asked = os.environ.get(ISA_VARIABLE, "")
    if not asked:
        return usable[0] if usable else REFERENCE
    if asked not in (*usable, REFERENCE):
        raise ImportError(f"{ISA_VARIABLE} is {asked!r}; usable here: {', '.join((*usable, REFERENCE))}")
    return asked


def are_usable() -> bool:
    """Whether ops run on the compiled kernels."""
    return chosen_instruction_set() != REFERENCE
