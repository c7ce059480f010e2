"""What a decoder looks like, as plain numbers: the result of reading config.json. Torch-free, so that sizing and
`quire check` can use it; it knows nothing of config.json's spellings (see `models/config.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVLayerSpec:
    """One layer's share of the KV cache."""

    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of K and V of one token: 2 x kv heads x (head size x bytes per number, and 4 for the scale that numbers
        of one byte share)."""
        return 2 * self.num_kv_heads * (self.head_dim * itemsize + (4 if itemsize == 1 else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """One rotary position scheme; two layers with equal schemes share a table (Su et al., RoFormer, 2021)."""

    rope_type: str
    """default, linear, dynamic, llama3, yarn or longrope."""
    theta: float
    rotary_dim: int
    """Leading numbers of each head that are rotated; even."""
    max_position: int
    """max_position_embeddings of config.json, the length that `dynamic` scales against."""
    factor: float = 1.0
    original_max_position: int = 0
    """Length before scaling, for llama3, yarn and longrope."""
    attention_factor: float = 1.0
    """Factor on cos and sin."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def describe(self) -> str:
        """The scheme in words for reports, such as "llama3 x8"."""
        return self.rope_type if self.factor == 1.0 else f"{self.rope_type} x{self.factor:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """The mixture of experts that replaces the MLP in the layers named in `layers`."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    renormalize: bool
    """Whether the chosen experts' probabilities are scaled to sum to one."""
    layers: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What every family shares. A family with more to say extends it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding: valid token ids are 0 to vocab_size - 1."""
    max_position: int
    """Longest context the configuration promises, rope scaling included."""
    activation: str
    """A key of `ops.ACTIVATIONS`."""
    norm_eps: float
    tie_word_embeddings: bool
    attention_scale: float
    """Factor on q·k before the softmax."""
    ropes: tuple[RopeConfig | None, ...]
    """Per layer; None where positions are learned or ALiBi."""
    windows: tuple[int | None, ...]
    """Per layer; see `AttentionSpec.window`."""
    position_scheme: str = ""
    """Words for reports where no layer has a rope: alibi, learned."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    head_norms: bool = False
    """RMSNorm on each head of q and k, before rotation (Qwen3, Gemma 3)."""
    moe: MoeConfig | None = None

    @property
    def output_size(self) -> int:
        """Numbers of a hidden state behind the last layer."""
        return self.hidden_size

    @property
    def kv_layers(self) -> tuple[KVLayerSpec, ...]:
        """One cache specification per layer."""
        return (KVLayerSpec(self.num_kv_heads, self.head_dim),) * self.num_layers

    @property
    def rope(self) -> str:
        """The position scheme in words; layers that differ are listed once each."""
        names = [rope.describe() for rope in dict.fromkeys(self.ropes) if rope is not None]
        return " / ".join(dict.fromkeys(names)) or self.position_scheme or "none"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A stack of layers in which every token attends to all others (Devlin et al., BERT, 2018, and its kin)."""

    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding: valid token ids are 0 to vocab_size - 1."""
    max_position: int
    """Longest prompt, in tokens."""
    position_offset: int = 0
    """Rows of the position table before that of the first token."""
    num_token_types: int = 0
    """Rows of the token type table; 0 where there is none."""
    activation: str
    """A key of `ops.ACTIVATIONS`."""
    norm_eps: float
    labels: tuple[str, ...] = ()
    """What its head tells apart; empty where it has none and embeds."""
    label_activation: str = "softmax"
    """See `base.pooling.PoolingModel.activation`."""
    ignored_weights: tuple[str, ...] = ()
    """Patterns (full match) of checkpoint tensors that are not needed: heads for other tasks, buffers."""

    @property
    def kv_layers(self) -> tuple[KVLayerSpec, ...]:
        """One: K and V are read in the step that writes them and no longer, so all layers use the same pages."""
        return (KVLayerSpec(self.num_heads, self.head_dim),)

    @property
    def output_size(self) -> int:
        """Numbers of a hidden state behind the last layer."""
        return self.hidden_size

    @property
    def rope(self) -> str:
        """The position scheme in words."""
        return "learned"

    @property
    def tie_word_embeddings(self) -> bool:
        """False: nothing is projected back to tokens."""
        return False
