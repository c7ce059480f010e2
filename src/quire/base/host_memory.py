"""Large blocks of host memory straight from the operating system."""

from __future__ import annotations

import mmap
from contextlib import suppress


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
