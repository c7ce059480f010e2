"""The fixed numbers of a training run.

Knows: seeds, steps, batch size, learning rates and task weights. Does not know: how to train.
Schedules count steps, never seconds, so that every run of a recipe does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.tiny_model.corpus.mixture import BALANCED, Mixture
from tools.tiny_model.model import DEMO, DRAFT, ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of one training run."""

    name: str
    model: ModelConfig
    steps: int
    tokens_per_step: int = 4096
    mixture: Mixture = BALANCED
    seed: int = 1
    matrix_rate: float = 0.01
    other_rate: float = 0.003
    # Of the matrices only, and per unit of learning rate.
    weight_decay: float = 0.1
    warm_up: int = 30
    checkpoint_every: int = 50

    def rate_factor(self, step: int) -> float:
        """Returns the share of the peak learning rate at a step: a short rise, then a line down to zero.

        Falling all the way matters: at a constant rate the loss of so small a network turns upwards again.
        """
        rise = (step + 1) / self.warm_up
        fall = (self.steps - step) / (self.steps - self.warm_up)
        return min(rise, fall, 1.0)


DEMO_RECIPE = Recipe("quire-demo", DEMO, steps=4500)
DRAFT_RECIPE = Recipe("quire-demo-draft", DRAFT, steps=800)
