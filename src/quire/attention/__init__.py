"""Paged attention: the seam (`interface`) and its backends. This is the one place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable

from quire.attention.interface import AttentionBackend
from quire.attention.reference import ReferenceAttention
from quire.base.errors import ConfigError

_BACKENDS: dict[str, Callable[[], AttentionBackend]] = {"reference": ReferenceAttention}
_DEVICE_DEFAULTS = {"cpu": "reference", "cuda": "reference"}


def select_backend(name_or_device: str) -> AttentionBackend:
    """The backend called so ("reference"), or the best one for a device type ("cpu", "cuda", "cuda:1").

    Raises:
        ConfigError: for a name that is neither.
    """
    device_type = name_or_device.partition(":")[0]
    name = _DEVICE_DEFAULTS.get(device_type, name_or_device)
    if name not in _BACKENDS:
        allowed = ", ".join([*_BACKENDS, *_DEVICE_DEFAULTS])
        raise ConfigError(f"attention backend is {name_or_device!r}; allowed: {allowed}")
    return _BACKENDS[name]()
