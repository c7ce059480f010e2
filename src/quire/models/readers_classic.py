"""config.json → typed configuration for Falcon, GPT-NeoX, GPT-2 and OPT, whose layouts differ from LLaMA's.

Torch-free. Defaults are those of the family's configuration class in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.layers.config import DecoderConfig
from quire.models.config import ConfigReader, promised_context, read_rope


@dataclass(frozen=True, kw_only=True)
class FalconConfig(DecoderConfig):
    """Falcon's three layouts: the 7B one, the 40B one (`grouped`) and the sequential one with ALiBi."""

    parallel: bool
    """Attention and MLP read the same input and are added together."""
    grouped: bool
    """Checkpoint order of query_key_value: [kv head, queries of its group + k + v] instead of heads, then k, v."""
    num_norms: int
    """Norms before a parallel block: 2 when attention and MLP have their own."""
    alibi: bool


@dataclass(frozen=True, kw_only=True)
class NeoXConfig(DecoderConfig):
    """GPT-NeoX: whether attention and MLP run in parallel."""

    parallel: bool


@dataclass(frozen=True, kw_only=True)
class GPT2Config(DecoderConfig):
    """GPT-2: attention may be scaled down with depth."""

    scale_by_layer: bool


@dataclass(frozen=True, kw_only=True)
class OPTConfig(DecoderConfig):
    """OPT: norms before or after each block, embeddings that may be narrower than the model."""

    norm_before: bool
    final_norm: bool
    embedding_size: int
    norm_affine: bool

    @property
    def output_size(self) -> int:
        """As narrow as the embeddings, for the head."""
        return self.embedding_size


def _equal_heads(reader: ConfigReader, width: str = "hidden_size", heads: str = "num_attention_heads") -> int:
    """Head size of families that cut the width into equal heads."""
    if reader.positive(width) % reader.positive(heads):
        raise reader.refuse(width, f"multiples of {heads} ({reader.values[heads]})")
    return reader.positive(width) // reader.positive(heads)


def _no_cross_attention(reader: ConfigReader) -> None:
    reader.must_equal("add_cross_attention", False, "cross attention is not run")
    reader.must_equal("quantization_config", None, "this checkpoint format has no scheme")


def read_falcon(raw: Mapping[str, Any]) -> FalconConfig:
    """Falcon 7B, 40B, RW and Falcon2 (Almazrouei et al., 2023)."""
    reader = ConfigReader({**raw, **({"hidden_size": raw["n_embed"]} if raw.get("n_embed") is not None else {})})
    _no_cross_attention(reader)
    head_dim, heads = _equal_heads(reader), reader.positive("num_attention_heads")
    grouped, alibi = reader.default("new_decoder_architecture", False), reader.default("alibi", False)
    parallel = reader.default("parallel_attn", True)
    if grouped and not parallel:
        raise reader.refuse("parallel_attn", "true with new_decoder_architecture")
    norms = reader.nullable("num_ln_in_parallel_attn", int) or (2 if grouped else 1)
    if norms not in ((1, 2) if grouped else (1,)):
        raise reader.refuse("num_ln_in_parallel_attn", "1, or 2 with new_decoder_architecture")
    layers, positions = reader.positive("num_hidden_layers"), reader.default("max_position_embeddings", 2048)
    rope = None if alibi else read_rope(reader, head_dim, max_position=positions)
    if rope is not None and rope.rotary_dim != head_dim:
        raise reader.refuse("partial_rotary_factor", "1.0 for this architecture")
    bias = reader.default("bias", False)
    return FalconConfig(
        num_layers=layers,
        hidden_size=reader.positive("hidden_size"),
        num_heads=heads,
        num_kv_heads=_falcon_kv_heads(reader, grouped, heads),
        head_dim=head_dim,
        intermediate_size=reader.default("ffn_hidden_size", 4 * reader.positive("hidden_size")),
        vocab_size=reader.positive("vocab_size"),
        max_position=promised_context(rope, positions) if rope else positions,
        activation=reader.activation("activation", "gelu"),
        norm_eps=reader.default("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=reader.default("tie_word_embeddings", True),
        attention_scale=head_dim**-0.5,
        ropes=(rope,) * layers,
        windows=(None,) * layers,
        position_scheme="alibi" if alibi else "",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        parallel=parallel,
        grouped=grouped,
        num_norms=norms,
        alibi=alibi,
    )


def _falcon_kv_heads(reader: ConfigReader, grouped: bool, heads: int) -> int:
    """`num_kv_heads` counts in the 40B layout; else multi-query means one and multi-head means all."""
    if not grouped:
        return 1 if reader.default("multi_query", True) else heads
    kv_heads = reader.nullable("num_kv_heads", int) or heads
    if heads % kv_heads:
        raise reader.refuse("num_kv_heads", f"divisors of num_attention_heads ({heads})")
    return kv_heads


def read_gpt_neox(raw: Mapping[str, Any]) -> NeoXConfig:
    """GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023)."""
    names = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    renamed = {new: raw[old] for old, new in names.items() if raw.get(old) is not None}
    reader = ConfigReader({"partial_rotary_factor": 0.25, **raw, **renamed})
    _no_cross_attention(reader)
    head_dim, layers = _equal_heads(reader), reader.positive("num_hidden_layers")
    positions = reader.default("max_position_embeddings", 2048)
    rope = read_rope(reader, head_dim, max_position=positions)
    bias = reader.default("attention_bias", True)
    return NeoXConfig(
        num_layers=layers,
        hidden_size=reader.positive("hidden_size"),
        num_heads=reader.positive("num_attention_heads"),
        num_kv_heads=reader.positive("num_attention_heads"),
        head_dim=head_dim,
        intermediate_size=reader.positive("intermediate_size"),
        vocab_size=reader.positive("vocab_size"),
        max_position=promised_context(rope, positions),
        activation=reader.activation("hidden_act", "gelu"),
        norm_eps=reader.default("layer_norm_eps", 1e-5),
        tie_word_embeddings=reader.default("tie_word_embeddings", False),
        attention_scale=head_dim**-0.5,
        ropes=(rope,) * layers,
        windows=(None,) * layers,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        parallel=reader.default("use_parallel_residual", True),
    )


def read_gpt2(raw: Mapping[str, Any]) -> GPT2Config:
    """GPT-2 (Radford et al., 2019); `reorder_and_upcast_attn` is how quire always computes."""
    reader = ConfigReader(_hidden_names(raw))
    _no_cross_attention(reader)
    head_dim, layers = _equal_heads(reader, "n_embd", "n_head"), reader.positive("n_layer")
    width = reader.positive("n_embd")
    scaled = reader.default("scale_attn_weights", True)
    return GPT2Config(
        num_layers=layers,
        hidden_size=width,
        num_heads=reader.positive("n_head"),
        num_kv_heads=reader.positive("n_head"),
        head_dim=head_dim,
        intermediate_size=reader.default("n_inner", 4 * width),
        vocab_size=reader.positive("vocab_size"),
        max_position=reader.default("n_positions", 1024),
        activation=reader.activation("activation_function", "gelu_new"),
        norm_eps=reader.default("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=reader.default("tie_word_embeddings", True),
        attention_scale=head_dim**-0.5 if scaled else 1.0,
        ropes=(None,) * layers,
        windows=(None,) * layers,
        position_scheme="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        scale_by_layer=reader.default("scale_attn_by_inverse_layer_idx", False),
    )


def _hidden_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """GPT-2 files may use the names other families use."""
    names = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    }
    return {**raw, **{old: raw[new] for old, new in names.items() if old not in raw and new in raw}}


def read_opt(raw: Mapping[str, Any]) -> OPTConfig:
    """OPT (Zhang et al., 2022); the 350M one has norms after each block and narrower embeddings."""
    reader = ConfigReader(raw)
    _no_cross_attention(reader)
    head_dim, layers = _equal_heads(reader), reader.positive("num_hidden_layers")
    width, bias = reader.positive("hidden_size"), reader.default("enable_bias", True)
    before = reader.default("do_layer_norm_before", True)
    return OPTConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=reader.positive("num_attention_heads"),
        num_kv_heads=reader.positive("num_attention_heads"),
        head_dim=head_dim,
        intermediate_size=reader.positive("ffn_dim"),
        vocab_size=reader.positive("vocab_size"),
        max_position=reader.default("max_position_embeddings", 2048),
        activation=reader.activation("activation_function", "relu"),
        norm_eps=1e-5,
        tie_word_embeddings=reader.default("tie_word_embeddings", True),
        attention_scale=head_dim**-0.5,
        ropes=(None,) * layers,
        windows=(None,) * layers,
        position_scheme="learned",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        norm_before=before,
        final_norm=before and not reader.default("_remove_final_layer_norm", False),
        embedding_size=reader.default("word_embed_proj_dim", width),
        norm_affine=reader.default("layer_norm_elementwise_affine", True),
    )
