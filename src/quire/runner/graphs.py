"""The seam for captured replays: how the runner asks for a forward pass that may have been recorded before.

This file knows no device. A device whose steps can be recorded returns its own `StepGraphs`; the others return
`DirectGraphs`, which calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from quire.attention.interface import AttentionPlan

Forward = Callable[..., tuple[Tensor, ...]]
"""places [T], positions [T], the step's plan and what else the pass takes [T] → results whose first dimension is T."""


class StepGraphs(Protocol):
    """Runs forward passes, recorded or not."""

    def run(
        self,
        kind: str,
        places: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        *,
        forward: Forward,
        others: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """The results of `forward` on these inputs, computed by a replay where there is a recording that fits.

        Passes that compute different things have different kinds. A pass may run another one as its part. The results
        may be overwritten by the next call.
        """


class DirectGraphs:
    """No recordings: every forward pass is a call."""

    def run(
        self,
        kind: str,
        places: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        *,
        forward: Forward,
        others: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Call `forward`."""
        return forward(places, positions, plan, *others)
