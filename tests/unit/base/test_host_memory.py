"""Memory from the operating system: zeros, of the size asked for, and none of it taken before it is written."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from quire.base.host_memory import zeroed_memory


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 5])
def test_a_block_holds_as_many_zeros_as_asked_for(size):
    memory = zeroed_memory(size)
    assert len(memory) >= size
    assert memory[:] == bytes(len(memory))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what Linux says of the process")
def test_memory_is_taken_a_small_page_at_a_time():
    """The first write to a huge page would clear two megabytes within a step."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    memory = zeroed_memory(256 << 20)
    assert resident() - before < 64 << 20
    for at in range(0, 256 << 20, 8 << 20):
        memory[at] = 1
    assert resident() - before < 32 << 20


def test_memory_that_is_not_to_be_had_is_a_memory_error_as_from_any_allocator():
    """Whoever runs out of memory is told so by what catches MemoryError; the system's own error is another."""
    with pytest.raises(MemoryError, match=f"{1 << 60} bytes"):
        zeroed_memory(1 << 60)
