"""Large blocks of host memory: straight from the operating system, and back to it."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

_LARGE_BLOCK = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def zeroed_memory(size: int) -> mmap.mmap:
    """At least `size` bytes of zeros, aligned to a page of the system; freed with the last view of them.

    Memory is taken page by page as it is first written: a start need not wait for gigabytes to be cleared, and an idle
    server does not hold what nobody uses yet. The pages are the system's small ones. numpy asks for huge ones, whose
    first write clears two megabytes at once: the steps of a server then stall for as many of them as there are layers,
    and on virtual machines, whose host has to find the memory first, for hundreds of milliseconds.

    Raises:
        MemoryError: the system does not give so much.
    """
    try:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system does not give {size} bytes of memory: {error.strerror}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # from a kernel that is built without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def return_large_memory() -> None:
    """Give large blocks back to the system as soon as they are freed, for a process that sees a large one now and then.

    The C library would keep up to 64 MiB of each thread's heap after blocks of ten megabytes, such as requests' bodies.
    Does nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BLOCK)
