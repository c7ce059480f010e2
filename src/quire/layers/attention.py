"""Self-attention: project, rotate, attend over pages, project back. What layers differ in comes in as parts."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from quire import ops
from quire.attention.interface import AttentionBackend, AttentionPlan, AttentionSpec

Rotation = tuple[Tensor, Tensor]
"""cos and sin [T, rotary_dim / 2] of the step's positions."""


class Attention(nn.Module):
    """Attention of one layer; its structure is `spec` and which of the optional parts it has."""

    def __init__(
        self,
        *,
        qkv_proj: nn.Module,
        o_proj: nn.Module,
        spec: AttentionSpec,
        backend: AttentionBackend,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.qkv_proj = qkv_proj
        self.o_proj = o_proj
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.spec = spec
        self.backend = backend

    def forward(self, x: Tensor, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan) -> Tensor:
        """x [T, E] → [T, E]; `kv` is this layer's pages."""
        spec = self.spec
        split = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        qkv = self.qkv_proj(x).unflatten(-1, (-1, spec.head_dim))  # [T, H + 2K, D]
        q, k, v = qkv.split(split, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = ops.rope(q, k, *rotation)
        out = self.backend.run(q, k, v, kv=kv, spec=spec, plan=plan)  # [T, H, D]
        return cast(Tensor, self.o_proj(out.flatten(1)))
