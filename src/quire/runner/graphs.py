"""The seam for captured replays: how the runner asks for a forward pass that may have been recorded before.

This file knows no device. A device whose steps can be recorded returns its own `StepGraphs`; the others return
`DirectGraphs`, which calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class StepShape:
    """What must be equal for a recorded forward pass to be replayed."""

    num_tokens: int
    """T, tokens in the step."""
    num_rows: int
    """R, rows in the step; a step of pure decodes has R = T."""


class StepGraphs(Protocol):
    """Runs forward passes, recorded or not."""

    def run(self, shape: StepShape, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of `forward()`, computed by a replay where one of this shape is recorded."""


class DirectGraphs:
    """No recordings: every forward pass is a call."""

    def run(self, shape: StepShape, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Call `forward`."""
        del shape
        return forward()
