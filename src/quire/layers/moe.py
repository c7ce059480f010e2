"""Mixture of experts: a router picks some gated MLPs per token and adds them up, weighted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from quire import ops
from quire.layers.config import MoeConfig
from quire.layers.context import BuildContext
from quire.layers.linear import build
from quire.quant.interface import ExpertsSpec, LinearLayer, LinearSpec, Part, WeightSlot


class MoE(nn.Module):
    """A router, which is never quantized, and experts of equal shape."""

    def __init__(self, config: MoeConfig, hidden_size: int, *, activation: str, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        router = LinearSpec(in_features=hidden_size, parts=(Part("", config.num_experts),), is_exact=True)
        experts = ExpertsSpec(
            num_experts=config.num_experts,
            hidden_size=hidden_size,
            width=config.intermediate_size,
            activation=activation,
        )
        self.gate = build(context, router)
        self.experts = context.scheme.experts(experts, dtype=context.dtype, device=context.device)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, E] → [T, E]."""
        config = self.config
        weights, ids = ops.route(self.gate(x), config.experts_per_token, renormalize=config.renormalize)  # [T, A] each
        return cast(Tensor, self.experts(x, weights, ids))

    def weight_alternatives(self, name: str) -> Iterator[WeightSlot]:
        """The router, whose name comes without the family's renames where the experts' do (see `ExpertsLayer`)."""
        for slot in cast(LinearLayer, self.gate).weight_slots(f"{name}.gate"):
            slot.fills = (slot.name,)
            yield slot
