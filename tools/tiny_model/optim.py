"""Muon for the matrices inside the layers; everything else goes to AdamW.

Knows: the update rule. Does not know: the network, the schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import Executor

import torch
from torch import Tensor

# The quintic whose iteration drives all singular values towards one.
_A, _B, _C = 3.4445, -4.7750, 2.0315


@torch.no_grad()
def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Returns the nearest (half-)orthogonal matrices, approximately, of a stack of matrices."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-2, -1) if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(-2, -1)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for two-dimensional parameters, with decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float, workers: Executor, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._workers = workers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            moves = [self._directions(parameters, group["momentum"]) for parameters in by_shape.values()]
            # Stacks of different shapes are independent of each other.
            results = self._workers.map(orthogonalised, moves)
            for (shape, parameters), updates in zip(by_shape.items(), results, strict=True):
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _directions(self, parameters: list[Tensor], momentum: float) -> Tensor:
        directions: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                raise ValueError("Muon needs a gradient for every parameter")
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            directions.append(parameter.grad.lerp(state["momentum"], momentum))
        return torch.stack(directions)
