"""Device services behind one protocol: memory, threads, uploads, copies back, graphs. The only place that asks which.

No device is a variant of another: `CpuDevice` completes at once because its memory is the host's, `CudaDevice` queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch

from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError
from quire.ops.cpu.program import Pool, current_pool, using
from quire.runner.cpu_graphs import CpuGraphs
from quire.runner.graphs import DirectGraphs, StepGraphs
from quire.runner.host_resources import available_memory, usable_cores


class HostCopy(Protocol):
    """Tensors on their way to the host."""

    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> list[torch.Tensor]:
        """The tensors in host memory, in the order they were given; blocks until they are there."""


class Device(Protocol):
    """What a runner needs from a device."""

    name: str
    torch_device: torch.device
    threads: int
    """Host threads that compute."""

    def auto_dtype(self) -> torch.dtype:
        """The precision `dtype=auto` means here."""

    def available_memory(self) -> int:
        """Bytes that may still be allocated."""

    def upload(self, values: np.ndarray) -> torch.Tensor:
        """The values as a tensor on the device; does not block. The caller must not change `values` afterwards."""

    def refresh(self, tensor: torch.Tensor, values: np.ndarray) -> None:
        """Make `tensor`, which `upload` made of `values`, what they have become; does not block.

        These values alone may be changed after their upload.
        """

    def fetch(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        """Start copying tensors to the host, after the work queued so far; does not block."""

    def graphs(self) -> StepGraphs:
        """A fresh recorder of forward passes."""

    def settle(self, threads: int, *, on_kernels: bool) -> None:
        """Compute with so many host threads from now on; `on_kernels`: the model's work is done by compiled kernels."""

    def computing(self) -> AbstractContextManager[object]:
        """What a step runs in, so that its ops find the threads that were settled on."""

    def kernel_seconds(self) -> float:
        """How long the host waited inside compiled kernels so far; 0 on a device that queues its work."""

    def synchronize(self) -> None:
        """Wait for all queued work."""


class _FinishedCopy:
    """A copy of tensors that are on the host already."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)

    def is_ready(self) -> bool:
        return True

    def wait(self) -> list[torch.Tensor]:
        return self._tensors


class CpuDevice:
    """The host processor: memory is shared with the caller, so uploads alias and copies back are done when asked."""

    name = "cpu"

    def __init__(self, *, threads: int | None = None) -> None:
        self.torch_device = torch.device("cpu")
        self.threads = threads or usable_cores()
        torch.set_num_threads(self.threads)
        self._pool: Pool | None = None

    def auto_dtype(self) -> torch.dtype:
        """float32: without native instructions torch emulates bfloat16 at a quarter of its speed."""
        return torch.float32

    def available_memory(self) -> int:
        """Bytes the process may still take, control-group limits included."""
        return available_memory()

    def upload(self, values: np.ndarray) -> torch.Tensor:
        """The values as a tensor over the same memory."""
        return torch.from_numpy(values)

    def refresh(self, tensor: torch.Tensor, values: np.ndarray) -> None:
        """Nothing is to be done: the memory is the same."""

    def fetch(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        """The same tensors, ready."""
        return _FinishedCopy(tensors)

    def graphs(self) -> StepGraphs:
        """Recordings on the compiled kernels, where there are any."""
        return CpuGraphs() if are_usable() else DirectGraphs()

    def settle(self, threads: int, *, on_kernels: bool) -> None:
        """Keep the kernels' threads, and leave torch one: its others would spin on the cores that the kernels need."""
        self.threads = threads
        torch.set_num_threads(threads)
        if on_kernels:
            self._pool = current_pool()  # as many as torch has now; the pool that the weights were packed with
            torch.set_num_threads(1)

    def computing(self) -> AbstractContextManager[object]:
        """The threads that were settled on, where kernels run."""
        return nullcontext() if self._pool is None else using(self._pool)

    def kernel_seconds(self) -> float:
        """How long calls of the kernels took since `settle`; 0 where there are none."""
        return 0.0 if self._pool is None else self._pool.seconds

    def synchronize(self) -> None:
        """Nothing is ever queued."""


class _QueuedCopy:
    """A copy from the GPU into pinned host memory, finished when its event is."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._event = torch.Event("cuda")
        self._event.record()

    def is_ready(self) -> bool:
        return self._event.query()

    def wait(self) -> list[torch.Tensor]:
        self._event.synchronize()
        return self._host


class _PinnedRing:
    """Pinned host buffers used in turn; one is written again only after the GPU has read it."""

    def __init__(self, depth: int = 64) -> None:
        self._slots: list[tuple[torch.Tensor, torch.Event] | None] = [None] * depth
        self._next = 0

    def stage(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Event]:
        """A pinned copy of `values` and the event to record after the GPU's read was queued."""
        index, self._next = self._next, (self._next + 1) % len(self._slots)
        slot = self._slots[index]
        if slot is not None:
            slot[1].synchronize()
        if slot is None or slot[0].numel() < values.nbytes:
            room = 1 << max(12, (values.nbytes - 1).bit_length())  # powers of two, at least 4 KiB: few reallocations
            slot = (torch.empty(room, dtype=torch.uint8, pin_memory=True), torch.Event("cuda"))
            self._slots[index] = slot
        buffer = slot[0][: values.nbytes].view(values.dtype).view(values.shape)
        buffer.copy_(values)
        return buffer, slot[1]


class CudaDevice:
    """One NVIDIA GPU on the current stream: uploads go through pinned memory, copies back signal by event."""

    name = "cuda"

    def __init__(self, *, index: int = 0, threads: int | None = None) -> None:
        self.torch_device = torch.device("cuda", index)
        self.threads = threads or usable_cores()
        torch.cuda.set_device(self.torch_device)
        self._ring = _PinnedRing()

    def auto_dtype(self) -> torch.dtype:
        """bfloat16 where the GPU multiplies it natively (compute capability 8.0), else float16."""
        major, _ = torch.cuda.get_device_capability(self.torch_device)
        return torch.bfloat16 if major >= 8 else torch.float16

    def available_memory(self) -> int:
        """Bytes free on the GPU, torch's own idle cache counted as free."""
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        idle = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return int(free + idle)

    def upload(self, values: np.ndarray) -> torch.Tensor:
        """The values through pinned memory, in stream order."""
        host = torch.from_numpy(np.ascontiguousarray(values))
        if not host.numel():
            return host.to(self.torch_device)
        buffer, read = self._ring.stage(host)
        result = buffer.to(self.torch_device, non_blocking=True)
        read.record()
        return result

    def refresh(self, tensor: torch.Tensor, values: np.ndarray) -> None:
        """Copy the values through pinned memory, in stream order."""
        buffer, read = self._ring.stage(torch.from_numpy(values))
        tensor.copy_(buffer, non_blocking=True)
        read.record()

    def fetch(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        """Queue the copies behind the work so far."""
        return _QueuedCopy(tensors)

    def graphs(self) -> StepGraphs:
        """Forward passes are called; recording them is the business of a GPU attention backend that allows it."""
        return DirectGraphs()

    def settle(self, threads: int, *, on_kernels: bool) -> None:
        """Host threads only prepare steps here."""
        self.threads = threads

    def computing(self) -> AbstractContextManager[object]:
        """Nothing to find: the GPU computes."""
        return nullcontext()

    def kernel_seconds(self) -> float:
        """Not measured: kernels run beside the host."""
        return 0.0

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.torch_device)


def select_device(name: str, *, threads: int | None = None) -> Device:
    """The device a setting names: `auto` is the GPU where there is one, else the CPU.

    Raises:
        ConfigError: for `cuda` without a usable GPU, and for an unknown name.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda")
    has_gpu = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        reason = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU"
        raise ConfigError(f"device is cuda, but {reason}; use --device cpu (or auto), or install a CUDA build of torch")
    return CudaDevice(threads=threads) if has_gpu else CpuDevice(threads=threads)
