"""Which implementation of an op runs on which device. It knows module names, not formulas."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from quire.base.cpu_kernels import are_usable

log = logging.getLogger(__name__)

REFERENCE = "quire.ops.reference"
FAST_MODULES: dict[str, tuple[str, ...]] = {"cpu": ("quire.ops.cpu.table",) if are_usable() else ()}
"""Device type → modules tried before the reference, best first."""


@cache
def implementation(device_type: str, op: str) -> Callable[..., Any]:
    """The function that runs `op` on a device type; chosen once, and logged when it is not the device's fast one."""
    names = (*FAST_MODULES.get(device_type, ()), REFERENCE)
    return choose(op, [importlib.import_module(name) for name in names])


def choose(op: str, modules: Sequence[ModuleType]) -> Callable[..., Any]:
    """The first module's function named `op`; one log line when the first module lacks it.

    Raises:
        AttributeError: when no module has it (an op without a reference body is a bug of ours).
    """
    for module in modules:
        function = getattr(module, op, None)
        if function is not None:
            if module is not modules[0]:
                log.info("op %s: no version in %s, running %s", op, modules[0].__name__, module.__name__)
            found: Callable[..., Any] = function
            return found
    raise AttributeError(f"op {op} has no implementation in {', '.join(m.__name__ for m in modules)}")
