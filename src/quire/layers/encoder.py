"""The encoder once for all families: embed, layers in which every token attends to all others, and a classifier's head.

A family says how its checkpoint names differ (`renames`) and, where it classifies, how its head ends. A prompt is
computed in one step; the pages its K and V go to are a workspace that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from quire import ops
from quire.attention.interface import AttentionPlan, AttentionSpec
from quire.base.errors import ConfigError
from quire.layers.attention import Attention
from quire.layers.blocks import PostNormBlock
from quire.layers.config import EncoderConfig, KVLayerSpec
from quire.layers.context import BuildContext
from quire.layers.embedding import Embedding, position_embedding
from quire.layers.linear import fused, linear
from quire.layers.mlp import MLP
from quire.layers.norm import LayerNorm
from quire.layers.weights import WeightSlot, collect_slots


class EncoderEmbeddings(nn.Module):
    """norm(token + token type + position)."""

    def __init__(self, config: EncoderConfig, context: BuildContext) -> None:
        super().__init__()
        width, offset = config.hidden_size, config.position_offset
        self.word_embeddings = Embedding(config.vocab_size, width, context=context)
        self.position_embeddings = position_embedding(config.max_position, width, context=context, offset=offset)
        types = config.num_token_types
        self.token_type_embeddings = position_embedding(types, width, context=context) if types else None
        self.norm = LayerNorm(width, eps=config.norm_eps, context=context)

    def forward(self, token_ids: Tensor, positions: Tensor, token_types: Tensor) -> Tensor:
        """token_ids, positions, token_types [T] int64 → [T, E]."""
        hidden = cast(Tensor, self.word_embeddings(token_ids))
        if self.token_type_embeddings is not None:
            hidden = ops.add(hidden, self.token_type_embeddings(token_types))
        return cast(Tensor, self.norm(ops.add(hidden, self.position_embeddings(positions))))


class LayerStack(nn.Module):
    """The layers; a level of its own because checkpoints have one."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, pages: Tensor, plan: AttentionPlan) -> Tensor:
        """hidden [T, E] → the same."""
        for layer in self.layers:
            hidden, _ = layer(hidden, None, None, pages, plan)
        return hidden


class LabelHead(nn.Module):
    """last(activation(first(x))): a classifier on the first token's hidden state."""

    def __init__(self, config: EncoderConfig, context: BuildContext, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = linear(context, config.hidden_size, config.hidden_size, bias=True)
        self.out_proj = linear(context, config.hidden_size, len(config.labels), bias=True)
        self._activation = activation

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [R, E] → logits [R, labels]."""
        return cast(Tensor, self.out_proj(self._activation(self.dense(pooled))))


class EncoderModel(nn.Module):
    """An encoder: what an encoder's runner runs and the loader fills."""

    renames: ClassVar[Mapping[str, str]] = {}
    """Module path component → the checkpoint's, "" where the checkpoint has no such level."""
    weight_prefixes: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Other beginnings of checkpoint names and what they stand for: (found, meant), tried in order."""
    lm_head = None
    """It writes no text."""

    def __init__(self, config: EncoderConfig, context: BuildContext) -> None:
        super().__init__()
        if context.parallel.size != 1:
            raise ConfigError(f"tensor_parallel_size is {context.parallel.size}; this model runs on 1 device")
        self.config = config
        self.context = context
        self.kv_layers: tuple[KVLayerSpec, ...] = config.kv_layers
        self.ignored_weights = config.ignored_weights
        self.embeddings = EncoderEmbeddings(config, context)
        self.encoder = LayerStack([self.layer() for _ in range(config.num_layers)])
        self.head = LabelHead(config, context, self.head_activation) if config.labels else None

    def forward(
        self, token_ids: Tensor, positions: Tensor, token_types: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan
    ) -> Tensor:
        """Hidden states [T, E] of token_ids at positions, of these types, all [T] int64; `kv` is one tensor."""
        hidden = self.embeddings(token_ids, positions, token_types)
        return cast(Tensor, self.encoder(hidden, kv[0], plan))

    def head_activation(self, x: Tensor) -> Tensor:
        """What stands between the two layers of a classifier's head."""
        return torch.tanh(x)

    def layer(self) -> nn.Module:
        """One layer: norm(h + attention(h)), then norm(h + mlp(h))."""
        config, context = self.config, self.context
        width, inner = config.hidden_size, config.intermediate_size
        parts = [(name, width) for name in ("q_proj", "k_proj", "v_proj")]
        attention = Attention(
            qkv_proj=fused(context, width, parts, bias=True),
            o_proj=linear(context, width, width, bias=True),
            spec=AttentionSpec(
                num_heads=config.num_heads,
                num_kv_heads=config.num_heads,
                head_dim=config.head_dim,
                scale=config.head_dim**-0.5,
                bidirectional=True,
            ),
            backend=context.attention,
        )
        up, down = linear(context, width, inner, bias=True), linear(context, inner, width, bias=True)
        norms = (LayerNorm(width, eps=config.norm_eps, context=context) for _ in range(2))
        return PostNormBlock(attention, MLP(up, down, activation=config.activation), *norms)

    def weight_slots(self) -> dict[str, WeightSlot]:
        """Every place a checkpoint tensor fills, by the tensor's full name."""
        return collect_slots(self, self.renames)

    def weight_alternatives(self) -> dict[str, WeightSlot]:
        """Norms under the names of the first BERT checkpoints: gamma for the weight, beta for the bias."""
        older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        slots = {}
        for name, slot in self.weight_slots().items():
            for now, before in older.items():
                if name.endswith(now):
                    other = name.removesuffix(now) + before
                    slots[other] = WeightSlot(name=other, shape=slot.shape, target=slot.target, fills=(name,))
        return slots
