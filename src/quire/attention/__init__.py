"""Paged attention: the seam (`interface`) and its backends. This is the one place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quire.attention.cpu import CpuAttention
from quire.attention.interface import AttentionBackend
from quire.attention.reference import ReferenceAttention
from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError

_BACKENDS: dict[str, Callable[[], AttentionBackend]] = {"reference": ReferenceAttention, "kernels": CpuAttention}
_DEVICES = ("cpu", "cuda")


def select_backend(name_or_device: str, *, dtype: torch.dtype = torch.float32) -> AttentionBackend:
    """The backend called so ("reference", "kernels"), or the best one for a device type ("cpu", "cuda:1") and the
    precision of its activations.

    Raises:
        ConfigError: for a name that is neither.
    """
    device_type = name_or_device.partition(":")[0]
    name = _best(device_type, dtype) if device_type in _DEVICES else name_or_device
    if name not in _BACKENDS:
        allowed = ", ".join([*_BACKENDS, *_DEVICES])
        raise ConfigError(f"attention backend is {name_or_device!r}; allowed: {allowed}")
    return _BACKENDS[name]()


def _best(device_type: str, dtype: torch.dtype) -> str:
    return "kernels" if device_type == "cpu" and dtype == torch.float32 and are_usable() else "reference"
