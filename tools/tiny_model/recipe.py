"""The fixed numbers of a training run.

Knows: seeds, steps, batch size, learning rates and task weights. Does not know: how to train.
Schedules count steps, never seconds, so that every run of a recipe does the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

from tools.tiny_model.corpus.mixture import WEIGHTS
from tools.tiny_model.model import DEMO, DRAFT, ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of one training run."""

    name: str
    model: ModelConfig
    steps: int
    tokens_per_step: int
    seed: int = 1
    matrix_rate: float = 0.02
    other_rate: float = 0.004
    warm_up: int = 40
    # Share of the steps before the rate starts to fall.
    plateau: float = 0.35
    checkpoint_every: int = 50
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def rate_factor(self, step: int) -> float:
        """Returns the share of the peak learning rate at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        flat_until = self.plateau * self.steps
        if step <= flat_until:
            return 1.0
        return max(0.0, (self.steps - step) / (self.steps - flat_until))


DEMO_RECIPE = Recipe("quire-demo", DEMO, steps=2200, tokens_per_step=4096)
DRAFT_RECIPE = Recipe("quire-demo-draft", DRAFT, steps=1200, tokens_per_step=4096, other_rate=0.01)
