"""The seam for captured replays: how the runner asks for a forward pass that may have been recorded before.

This file knows no device. A device whose steps can be recorded returns its own `StepGraphs`; the others return
`DirectGraphs`, which calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from quire.attention.interface import AttentionPlan

Forward = Callable[..., tuple[Tensor, ...]]
"""The step's plan and inputs [T] → results whose first dimension is T."""


class StepGraphs(Protocol):
    """Runs forward passes, recorded or not."""

    def run(self, kind: str, plan: AttentionPlan, *inputs: Tensor, forward: Forward) -> tuple[Tensor, ...]:
        """The results of `forward(plan, *inputs)`, computed by a replay where there is a recording that fits.

        Passes that compute different things have different kinds. A pass may run another one as its part. The results
        may be overwritten by the next call.
        """


class DirectGraphs:
    """No recordings: every forward pass is a call."""

    def run(self, kind: str, plan: AttentionPlan, *inputs: Tensor, forward: Forward) -> tuple[Tensor, ...]:
        """Call `forward`."""
        return forward(plan, *inputs)
