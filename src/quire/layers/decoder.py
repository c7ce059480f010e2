"""The decoder once for all families: embed, layers, final norm, head.

A family overrides factory methods of `CausalLM` (`attention(layer)`, `mlp(layer)`, `norm()`, ...), not the loop, and
says how its checkpoint names differ. A layer receives (delta, residual) whose sum is the hidden state, so that each
addition can be fused into the norm that follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic, TypeVar, cast

from torch import Tensor, nn

from quire import ops
from quire.attention.interface import AttentionPlan, AttentionSpec
from quire.base.errors import ConfigError
from quire.layers.attention import Attention, Rotation
from quire.layers.blocks import SequentialBlock
from quire.layers.config import DecoderConfig, KVLayerSpec, RopeConfig
from quire.layers.context import BuildContext
from quire.layers.embedding import Embedding, OutputHead
from quire.layers.linear import fused, linear
from quire.layers.mlp import GatedMLP
from quire.layers.norm import Norm, RMSNorm
from quire.layers.rope import RotaryTable
from quire.layers.weights import WeightSlot, collect_alternatives, collect_slots

ConfigT = TypeVar("ConfigT", bound=DecoderConfig)


class Decoder(nn.Module):
    """From token ids to hidden states; attribute names are those of LLaMA checkpoints."""

    def __init__(
        self,
        embed_tokens: Embedding,
        layers: Sequence[nn.Module],
        norm: Norm | None,
        *,
        tables: Mapping[RopeConfig, RotaryTable],
        ropes: Sequence[RopeConfig | None],
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embed_positions: Embedding | None = None
        self.project_in: nn.Module | None = None
        self.project_out: nn.Module | None = None
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.tables = nn.ModuleList(tables.values())
        order = list(tables)
        self.table_of_layer = [None if rope is None else order.index(rope) for rope in ropes]

    def forward(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """See `CausalLM.forward`."""
        rotations: list[Rotation] = [table(positions) for table in self.tables]
        delta, residual = self.embed(token_ids, positions), None
        for layer, table, pages in zip(self.layers, self.table_of_layer, kv, strict=True):
            delta, residual = layer(delta, residual, None if table is None else rotations[table], pages, plan)
        hidden = self._finish(delta, residual)
        return hidden if self.project_out is None else cast(Tensor, self.project_out(hidden))

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Token embeddings, widened where they are narrow, plus learned positions where there are any: [T, E]."""
        hidden = cast(Tensor, self.embed_tokens(token_ids))
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        return hidden if self.embed_positions is None else ops.add(hidden, self.embed_positions(positions))

    def _finish(self, delta: Tensor, residual: Tensor | None) -> Tensor:
        if self.norm is not None:
            return self.norm.add(delta, residual)[0]
        return delta if residual is None else ops.add(delta, residual)


class CausalLM(nn.Module, Generic[ConfigT]):
    """A decoder with its output head: what a runner runs and a loader fills."""

    renames: ClassVar[Mapping[str, str]] = {}
    """Module path component → the checkpoint's, "" where the checkpoint has no such level."""
    ignored_weights: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    """Patterns (full match) of checkpoint tensors that the model does not need; the head's too where it is tied."""
    weight_prefixes: ClassVar[tuple[tuple[str, str], ...]] = (("", "model."),)
    """Other beginnings of checkpoint names and what they stand for: (found, meant), tried in order."""

    def __init__(self, config: ConfigT, context: BuildContext) -> None:
        super().__init__()
        if context.parallel.size != 1:
            raise ConfigError(f"tensor_parallel_size is {context.parallel.size}; this model runs on 1 device")
        if config.position_scheme == "learned" and context.max_model_len > config.max_position:
            raise ConfigError(f"max_model_len is {context.max_model_len}; allowed: up to {config.max_position}")
        self.config = config
        self.context = context
        self.kv_layers: tuple[KVLayerSpec, ...] = config.kv_layers
        tables = {rope: RotaryTable(rope, context) for rope in dict.fromkeys(config.ropes) if rope is not None}
        layers = [self.layer(index) for index in range(config.num_layers)]
        self.model = Decoder(self.embedding(), layers, self.final_norm(), tables=tables, ropes=config.ropes)
        tied = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = OutputHead(config.vocab_size, self.output_size(), context=context, tied=tied)
        if tied is not None:
            head = self.checkpoint_names().get("lm_head", "lm_head")
            self.ignored_weights = (*self.ignored_weights, rf"(lm_head|{head})\.weight")

    def forward(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """Hidden states [T, E] of token_ids [T] int64 at positions [T] int64.

        `kv` holds one tensor of pages per layer, which the step's K and V are written into; `plan` comes from the
        attention backend the model was built with.
        """
        return cast(Tensor, self.model(token_ids, positions, kv=kv, plan=plan))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [R, E] → float32 [R, V], soft cap included."""
        logits = cast(Tensor, self.lm_head(hidden)).float()
        cap = self.config.final_softcap
        return logits if cap is None else ops.softcap(logits, cap)

    def weight_slots(self) -> dict[str, WeightSlot]:
        """Every place a checkpoint tensor fills, by the tensor's full name."""
        return collect_slots(self, self.checkpoint_names())

    def weight_alternatives(self) -> dict[str, WeightSlot]:
        """Tensors that some checkpoints have in place of several others (fused experts), each with what it fills."""
        return collect_alternatives(self, self.checkpoint_names())

    def checkpoint_names(self) -> Mapping[str, str]:
        """`renames`, for families where they depend on the configuration."""
        return self.renames

    # Factory methods: what a family overrides.

    def embedding(self) -> Embedding:
        """The token table."""
        return Embedding(self.config.vocab_size, self.config.hidden_size, context=self.context)

    def layer(self, index: int) -> nn.Module:
        """One decoder layer."""
        return SequentialBlock(self.attention(index), self.mlp(index), self.norm(), self.norm())

    def attention(self, layer: int) -> Attention:
        """The self-attention of a layer."""
        config = self.config
        q_norm, k_norm = (self.norm(config.head_dim) if config.head_norms else None for _ in range(2))
        return Attention(
            qkv_proj=self.qkv(layer),
            o_proj=self.attention_out(),
            spec=self.attention_spec(layer),
            backend=self.context.attention,
            q_norm=q_norm,
            k_norm=k_norm,
        )

    def qkv(self, layer: int) -> nn.Module:
        """The product that makes q, k and v, rows in this order."""
        config = self.config
        rows = [config.num_heads * config.head_dim] + [config.num_kv_heads * config.head_dim] * 2
        parts = list(zip(("q_proj", "k_proj", "v_proj"), rows, strict=True))
        return fused(self.context, config.hidden_size, parts, bias=config.qkv_bias)

    def attention_out(self) -> nn.Module:
        """The product that follows attention."""
        config = self.config
        return linear(self.context, config.num_heads * config.head_dim, config.hidden_size, bias=config.out_bias)

    def attention_spec(self, layer: int) -> AttentionSpec:
        """The structure of a layer's attention."""
        config = self.config
        return AttentionSpec(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            window=config.windows[layer],
            softcap=config.attention_softcap,
        )

    def mlp(self, layer: int) -> nn.Module:
        """The feed-forward block of a layer."""
        config = self.config
        parts = [("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)]
        gate_up = fused(self.context, config.hidden_size, parts, bias=config.mlp_bias)
        down = linear(self.context, config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        return GatedMLP(gate_up, down, activation=config.activation)

    def norm(self, size: int | None = None) -> Norm:
        """A norm over `size` numbers, the model's width when not given."""
        return RMSNorm(size or self.config.hidden_size, eps=self.config.norm_eps, context=self.context)

    def final_norm(self) -> Norm | None:
        """The norm before the head."""
        return self.norm()

    def output_size(self) -> int:
        """Width of what `forward` returns."""
        return self.config.hidden_size
