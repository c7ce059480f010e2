"""Mixture of experts: a router picks some gated MLPs per token and adds them up, weighted."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from quire import ops
from quire.layers.config import MoeConfig
from quire.layers.context import BuildContext
from quire.layers.norm import parameter, whole_slot
from quire.quant.interface import WeightSlot


class MoE(nn.Module):
    """Experts of equal shape; gate and up of each are one matrix. The router is never quantized."""

    def __init__(self, config: MoeConfig, hidden_size: int, *, activation: str, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.activation = activation
        count, width = config.num_experts, config.intermediate_size
        self.router = parameter(context, count, hidden_size)
        self.gate_up = parameter(context, count, 2 * width, hidden_size)
        self.down = parameter(context, count, hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, E] → [T, E]."""
        config = self.config
        weights, ids = ops.route(
            ops.linear(x, self.router), config.experts_per_token, renormalize=config.renormalize
        )  # [T, A] each
        return ops.experts(x, self.gate_up, self.down, weights, ids, kind=self.activation)

    def weight_slots(self, name: str) -> Iterator[WeightSlot]:
        """The router, and three matrices per expert."""
        yield whole_slot(f"{name}.gate.weight", self.router)
        width = self.config.intermediate_size
        for index in range(self.config.num_experts):
            stem = f"{name}.experts.{index}"
            yield whole_slot(f"{stem}.gate_proj.weight", self.gate_up[index, :width])
            yield whole_slot(f"{stem}.up_proj.weight", self.gate_up[index, width:])
            yield whole_slot(f"{stem}.down_proj.weight", self.down[index])

    def weight_alternatives(self, name: str) -> Iterator[WeightSlot]:
        """All experts in one tensor, the form `transformers` 5 holds in memory."""
        yield _filling(whole_slot(f"{name}.gate.weight", self.router), [f"{name}.gate.weight"])
        stems = [f"{name}.experts.{index}" for index in range(self.config.num_experts)]
        gates = [f"{stem}.{part}.weight" for stem in stems for part in ("gate_proj", "up_proj")]
        yield _filling(whole_slot(f"{name}.experts.gate_up_proj", self.gate_up), gates)
        downs = [f"{stem}.down_proj.weight" for stem in stems]
        yield _filling(whole_slot(f"{name}.experts.down_proj", self.down), downs)


def _filling(slot: WeightSlot, names: list[str]) -> WeightSlot:
    slot.fills = tuple(names)
    return slot
