"""The ways to arrange attention, MLP and norms in a decoder layer.

Every block takes (delta, residual), whose sum is the hidden state, and returns such a pair.
"""

from __future__ import annotations

from torch import Tensor, nn

from quire import ops
from quire.attention.interface import AttentionPlan
from quire.layers.attention import Rotation
from quire.layers.norm import Norm

State = tuple[Tensor, Tensor | None]


class TwoNormBlock(nn.Module):
    """The parts of a block whose attention and MLP have a norm each; subclasses arrange them."""

    def __init__(
        self, self_attn: nn.Module, mlp: nn.Module, input_layernorm: Norm, post_attention_layernorm: Norm
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = input_layernorm
        self.post_attention_layernorm = post_attention_layernorm


class SequentialBlock(TwoNormBlock):
    """h + attention(norm(h)), then h + mlp(norm(h)): LLaMA and most others."""

    def forward(
        self, delta: Tensor, residual: Tensor | None, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan
    ) -> State:
        """delta, residual [T, E] → the same."""
        x, residual = self.input_layernorm.add(delta, residual)
        x, residual = self.post_attention_layernorm.add(self.self_attn(x, rotation, kv, plan), residual)
        return self.mlp(x), residual


class ParallelBlock(TwoNormBlock):
    """h + attention(norm(h)) + mlp(norm'(h)): GPT-NeoX and Falcon 40B."""

    def forward(
        self, delta: Tensor, residual: Tensor | None, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan
    ) -> State:
        """delta, residual [T, E] → the same."""
        x, residual = self.input_layernorm.add(delta, residual)
        attended = self.self_attn(x, rotation, kv, plan)
        return ops.add(attended, self.mlp(self.post_attention_layernorm(residual))), residual


class PostNormBlock(TwoNormBlock):
    """norm(h + attention(h)), then norm(h + mlp(h)): OPT 350M."""

    def forward(
        self, delta: Tensor, residual: Tensor | None, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan
    ) -> State:
        """delta [T, E], no residual → the same."""
        x, _ = self.input_layernorm.add(self.self_attn(delta, rotation, kv, plan), delta)
        return self.post_attention_layernorm.add(self.mlp(x), x)[0], None


class SharedNormBlock(nn.Module):
    """h + attention(norm(h)) + mlp(norm(h)) with one norm for both: Falcon 7B."""

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, input_layernorm: Norm) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = input_layernorm

    def forward(
        self, delta: Tensor, residual: Tensor | None, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan
    ) -> State:
        """delta, residual [T, E] → the same."""
        x, residual = self.input_layernorm.add(delta, residual)
        return ops.add(self.self_attn(x, rotation, kv, plan), self.mlp(x)), residual


class SandwichBlock(nn.Module):
    """h + norm(attention(norm(h))), then h + norm(mlp(norm(h))): Gemma 2 and 3."""

    def __init__(self, self_attn: nn.Module, mlp: nn.Module, norms: tuple[Norm, Norm, Norm, Norm]) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]

    def forward(
        self, delta: Tensor, residual: Tensor | None, rotation: Rotation | None, kv: Tensor, plan: AttentionPlan
    ) -> State:
        """delta, residual [T, E] → the same."""
        x, residual = self.input_layernorm.add(delta, residual)
        x = self.post_attention_layernorm(self.self_attn(x, rotation, kv, plan))
        x, residual = self.pre_feedforward_layernorm.add(x, residual)
        return self.post_feedforward_layernorm(self.mlp(x)), residual
