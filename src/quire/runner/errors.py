"""Recognises that memory ran out, in the several ways torch and Python say so, and reports it as `StepError`."""

from __future__ import annotations

import torch

from quire.base.errors import StepError

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""torch raises a plain RuntimeError when malloc fails; only the allocator's name in it tells."""


def is_allocation_failure(error: BaseException) -> bool:
    """Whether `error` says that host or device memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


class AllocationFailuresAsStepErrors:
    """Turns a failed allocation within the block into StepError; other exceptions pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and is_allocation_failure(error):
            raise StepError(
                "out of memory while computing a step; its requests were ended and the engine goes on. "
                "Lower max_num_batched_tokens, max_num_seqs or kv_cache_memory_bytes to leave more room "
                f"({_first_line(error)})"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
