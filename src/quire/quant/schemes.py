"""The one place where a weight scheme is chosen."""

from __future__ import annotations

import torch

from quire.base.cpu_kernels import are_usable
from quire.quant.interface import QuantScheme
from quire.quant.packed import PackedWeights
from quire.quant.unquantized import Unquantized


def select_scheme(weight_format: str, *, device: torch.device, dtype: torch.dtype) -> QuantScheme:
    """The scheme that holds weights in `weight_format` (see ops/cpu/weights.py, or a float dtype's name)."""
    if device.type == "cpu" and dtype == torch.float32 and are_usable():
        return PackedWeights(weight_format)
    return Unquantized()
