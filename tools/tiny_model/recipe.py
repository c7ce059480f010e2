"""The fixed numbers of a training run.

Knows: seeds, steps, batch size, learning rates and task weights. Does not know: how to train.
Schedules count steps, never seconds, so that every run of a recipe does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.tiny_model.corpus.mixture import BROAD, COPYING, HARDEST, LAGGING, SKILLS, Mixture
from tools.tiny_model.model import DEMO, DRAFT, SEEDLING, ModelConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one network on one mixture of tasks; networks may only grow."""

    model: ModelConfig
    steps: int
    tokens_per_step: int
    mixture: Mixture


@dataclass(frozen=True)
class Decay:
    """A fall of the learning rate from a share of its peak after `start`, in force before `stop`.

    It falls in a line that reaches zero at `zero`.
    """

    start: int
    stop: int
    zero: int
    peak: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of one training run."""

    name: str
    phases: tuple[Phase, ...]
    # Between decays the learning rate is at its peak.
    decays: tuple[Decay, ...]
    seed: int = 1
    matrix_rate: float = 0.02
    other_rate: float = 0.006
    warm_up: int = 30
    checkpoint_every: int = 50

    @property
    def steps(self) -> int:
        """Returns the number of steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def model(self) -> ModelConfig:
        """Returns the network that the run ends with."""
        return self.phases[-1].model

    def phase(self, step: int) -> Phase:
        """Returns the phase that a step belongs to."""
        end = 0
        for phase in self.phases:
            end += phase.steps
            if step < end:
                return phase
        raise ValueError(f"step {step} is beyond the recipe's {self.steps} steps")

    def rate_factor(self, step: int) -> float:
        """Returns the share of the peak learning rate at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        for decay in self.decays:
            if decay.start < step < decay.stop:
                return decay.peak * ((decay.zero - step) / (decay.zero - decay.start))
        return 1.0


DEMO_RECIPE = Recipe(
    "quire-demo",
    (
        Phase(SEEDLING, 700, 2048, COPYING),
        Phase(SEEDLING, 1200, 4096, BROAD),
        Phase(SEEDLING, 1500, 4096, SKILLS),
        Phase(DEMO, 600, 4096, SKILLS),
        Phase(DEMO, 450, 4096, LAGGING),
        Phase(DEMO, 3900, 4096, HARDEST),
    ),
    # The first is short: the run began with a shorter plan, and the recipe says what was done.
    decays=(
        Decay(1300, 1350, 1800),
        Decay(3000, 4000, 4000),
        Decay(3999, 4450, 4450, 0.3),
        Decay(4449, 8350, 8350, 0.7),
    ),
)
DRAFT_RECIPE = Recipe("quire-demo-draft", (Phase(DRAFT, 400, 4096, BROAD),), decays=(Decay(200, 400, 400),))
