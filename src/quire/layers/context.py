"""What building a model needs besides its configuration; passed in, never global."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from quire.attention.interface import AttentionBackend
from quire.quant.interface import QuantScheme
from quire.quant.unquantized import Unquantized


@dataclass(frozen=True, slots=True)
class ParallelGroup:
    """The devices one model is split over, and this one's place among them."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """Where and how a model is built."""

    dtype: torch.dtype
    """Precision of weights and activations."""
    device: torch.device
    attention: AttentionBackend
    max_model_len: int
    """Positions the model must serve; fixes the length that dynamic and longrope positions are scaled for."""
    scheme: QuantScheme = field(default_factory=Unquantized)
    parallel: ParallelGroup = field(default_factory=ParallelGroup)
