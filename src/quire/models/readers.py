"""config.json → typed configuration for the families built like LLaMA: rotary positions, RMSNorm, a gated MLP.

Torch-free. Defaults are those of the family's configuration class in `transformers`, because checkpoints leave keys out
that equal them. Families with another layout are in `models/readers_classic.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.layers.config import DecoderConfig, MoeConfig, RopeConfig
from quire.models.config import (
    ConfigReader,
    promised_context,
    read_heads,
    read_layer_types,
    read_rope,
    read_windows,
    rope_from,
    windows_of,
)


def shared(
    reader: ConfigReader,
    *,
    max_position: int,
    theta: float = 10000.0,
    default_kv: int | None = None,
    default_window: int | None = None,
    activation_key: str = "hidden_act",
) -> dict[str, Any]:
    """The fields that all families of this file read alike, as arguments of `DecoderConfig`."""
    heads, kv_heads, head_dim = read_heads(reader, default_kv=default_kv)
    positions = reader.default("max_position_embeddings", max_position)
    num_layers = reader.positive("num_hidden_layers")
    rope = read_rope(reader, head_dim, theta=theta, max_position=positions)
    reader.must_equal("is_decoder", False, "cross attention is not run")
    reader.must_equal("quantization_config", None, "this checkpoint format has no scheme")
    return {
        "num_layers": num_layers,
        "hidden_size": reader.positive("hidden_size"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": reader.positive("intermediate_size"),
        "vocab_size": reader.positive("vocab_size"),
        "max_position": promised_context(rope, positions),
        "activation": reader.activation(activation_key, "silu"),
        "norm_eps": reader.default("rms_norm_eps", 1e-6),
        "tie_word_embeddings": reader.default("tie_word_embeddings", False),
        "attention_scale": head_dim**-0.5,
        "ropes": (rope,) * num_layers,
        "windows": read_windows(reader, default=default_window),
    }


def whole_heads(reader: ConfigReader, fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse partial rotation for families that rotate whole heads."""
    rope: RopeConfig = fields["ropes"][0]
    if rope.rotary_dim != fields["head_dim"]:
        raise reader.refuse("partial_rotary_factor", "1.0 for this architecture")
    return fields


def read_llama(raw: Mapping[str, Any]) -> DecoderConfig:
    """LLaMA 1 to 3.x (Touvron et al., 2023; Grattafiori et al., 2024)."""
    reader = ConfigReader(raw)
    reader.must_equal("sliding_window", None, "the LLaMA architecture has no window")
    bias = reader.default("attention_bias", False)
    return DecoderConfig(
        **whole_heads(reader, shared(reader, max_position=2048)),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=reader.default("mlp_bias", False),
    )


def read_mistral(raw: Mapping[str, Any]) -> DecoderConfig:
    """Mistral (Jiang et al., 2023): LLaMA with a sliding window on all layers, or on none."""
    reader = ConfigReader(raw)
    fields = shared(reader, max_position=131072, default_kv=8, default_window=4096)
    sliding = fields["windows"][0] is not None
    _same_type_everywhere(reader, "sliding_attention" if sliding else "full_attention")
    return DecoderConfig(**whole_heads(reader, fields))


def _same_type_everywhere(reader: ConfigReader, kind: str) -> None:
    found: list[Any] = reader.default("layer_types", [])
    if any(entry != kind for entry in found):
        raise reader.refuse("layer_types", f"{kind} for every layer of this architecture, as sliding_window says")


def _qwen_windows(reader: ConfigReader) -> tuple[int | None, ...]:
    """Layers from `max_window_layers` on slide, where `use_sliding_window` is set."""
    used = reader.default("use_sliding_window", False)
    window = reader.nullable("sliding_window", int, 4096) if used else None
    first = reader.default("max_window_layers", 28)
    slides = [window is not None and i >= first for i in range(reader.positive("num_hidden_layers"))]
    types = read_layer_types(reader, ["sliding_attention" if s else "full_attention" for s in slides])
    return windows_of(reader, types, window)


def read_qwen2(raw: Mapping[str, Any]) -> DecoderConfig:
    """Qwen2 and Qwen2.5 (Yang et al., 2024): LLaMA with biases on q, k and v."""
    reader = ConfigReader(raw)
    fields = shared(reader, max_position=32768, default_kv=32)
    fields["windows"] = _qwen_windows(reader)
    return DecoderConfig(**whole_heads(reader, fields), qkv_bias=True)


def read_qwen3(raw: Mapping[str, Any]) -> DecoderConfig:
    """Qwen3 (Yang et al., 2025): RMSNorm on each head of q and k, `head_dim` of its own."""
    reader = ConfigReader({"head_dim": 128, **raw})
    fields = shared(reader, max_position=32768, default_kv=32)
    fields["windows"] = _qwen_windows(reader)
    bias = reader.default("attention_bias", False)
    return DecoderConfig(**whole_heads(reader, fields), qkv_bias=bias, out_bias=bias, head_norms=True)


def read_phi3(raw: Mapping[str, Any]) -> DecoderConfig:
    """Phi-3 and Phi-4-mini (Abdin et al., 2024): fused projections, partial rotation, longrope."""
    reader = ConfigReader(_phi3_rope_names(raw))
    fields = shared(reader, max_position=4096)
    kind = fields["ropes"][0].rope_type
    if kind not in ("default", "longrope"):
        raise reader.refuse("rope_scaling", "rope type default or longrope for this architecture")
    fields["norm_eps"] = reader.default("rms_norm_eps", 1e-5)
    return DecoderConfig(**fields)


def _phi3_rope_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Early Phi-3 files call longrope "su" or "yarn", and imply an original length of 4096."""
    values: dict[str, Any] = {"original_max_position_embeddings": 4096, **raw}
    for key in ("rope_scaling", "rope_parameters"):
        section = values.get(key)
        if isinstance(section, dict) and {section.get("rope_type"), section.get("type")} & {"su", "yarn"}:
            values[key] = {**section, "rope_type": "longrope"}
    return values


def read_mixtral(raw: Mapping[str, Any]) -> DecoderConfig:
    """Mixtral (Jiang et al., 2024): Mistral with eight experts, two chosen per token."""
    reader = ConfigReader(raw)
    fields = shared(reader, max_position=131072, default_kv=8, theta=1e6)
    fields["norm_eps"] = reader.default("rms_norm_eps", 1e-5)
    moe = MoeConfig(
        num_experts=_num_experts(reader, 8),
        experts_per_token=reader.default("num_experts_per_tok", 2),
        intermediate_size=fields["intermediate_size"],
        renormalize=True,
        layers=frozenset(range(fields["num_layers"])),
    )
    return DecoderConfig(**whole_heads(reader, fields), moe=_checked(reader, moe))


def read_qwen3_moe(raw: Mapping[str, Any]) -> DecoderConfig:
    """Qwen3 mixture of experts (Yang et al., 2025); some layers may keep a plain MLP."""
    reader = ConfigReader(raw)
    fields = shared(reader, max_position=32768, default_kv=4)
    used = reader.default("use_sliding_window", False)
    fields["windows"] = read_windows(reader, default=4096) if used else (None,) * fields["num_layers"]
    experts, step = _num_experts(reader, 128), reader.default("decoder_sparse_step", 1)
    plain: list[Any] = reader.default("mlp_only_layers", [])
    sparse = frozenset(i for i in range(fields["num_layers"]) if i not in plain and (i + 1) % step == 0)
    moe = MoeConfig(
        num_experts=experts,
        experts_per_token=reader.default("num_experts_per_tok", 8),
        intermediate_size=reader.default("moe_intermediate_size", 768),
        renormalize=reader.default("norm_topk_prob", False),
        layers=sparse if experts > 0 else frozenset(),
    )
    bias = reader.default("attention_bias", False)
    return DecoderConfig(
        **whole_heads(reader, fields), qkv_bias=bias, out_bias=bias, head_norms=True, moe=_checked(reader, moe)
    )


def _num_experts(reader: ConfigReader, default: int) -> int:
    """Both spellings occur: num_experts and num_local_experts."""
    return reader.default("num_local_experts", reader.default("num_experts", default))


def _checked(reader: ConfigReader, moe: MoeConfig) -> MoeConfig:
    if moe.layers and not 1 <= moe.experts_per_token <= moe.num_experts:
        raise reader.refuse("num_experts_per_tok", f"1 to the number of experts ({moe.num_experts})")
    return moe


def read_gemma2(raw: Mapping[str, Any]) -> DecoderConfig:
    """Gemma 2 (2024): soft caps, a window on every other layer, norms before and after each block."""
    reader = ConfigReader({"head_dim": 256, **raw})
    fields = _gemma(reader, max_position=8192)
    alternating = ["full_attention" if i % 2 else "sliding_attention" for i in range(fields["num_layers"])]
    fields["windows"] = windows_of(
        reader, read_layer_types(reader, alternating), reader.nullable("sliding_window", int, 4096)
    )
    return DecoderConfig(
        **whole_heads(reader, fields),
        attention_softcap=reader.nullable("attn_logit_softcapping", float, 50.0),
        final_softcap=reader.nullable("final_logit_softcapping", float, 30.0),
    )


def _gemma(reader: ConfigReader, *, max_position: int) -> dict[str, Any]:
    """What Gemma 2 and 3 read alike."""
    reader.must_equal("use_bidirectional_attention", False, "generation is causal")
    values = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, **reader.values}
    fields = shared(
        ConfigReader(values, reader.where),
        max_position=max_position,
        default_kv=4,
        default_window=4096,
        activation_key="hidden_activation",
    )
    scalar = reader.default("query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise reader.refuse("query_pre_attn_scalar", "positive numbers")
    bias = reader.default("attention_bias", False)
    return {**fields, "attention_scale": scalar**-0.5, "qkv_bias": bias, "out_bias": bias}


def read_gemma3(raw: Mapping[str, Any]) -> DecoderConfig:
    """Gemma 3, text (2025): five sliding layers to one global one, each kind with its own rope; norms on q and k."""
    reader = ConfigReader({"head_dim": 256, **raw})
    reader.must_equal("attn_logit_softcapping", None, "Gemma 3 has no soft cap on attention")
    local, full = _gemma3_ropes(reader, reader.default("max_position_embeddings", 131072))
    plain = {k: v for k, v in reader.values.items() if k not in ("rope_scaling", "rope_parameters")}
    fields = _gemma(ConfigReader(plain, reader.where), max_position=131072)
    pattern = reader.default("sliding_window_pattern", reader.default("_sliding_window_pattern", 6))
    computed = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(fields["num_layers"])]
    types = read_layer_types(reader, computed)
    fields["ropes"] = tuple(local if kind == "sliding_attention" else full for kind in types)
    fields["windows"] = windows_of(reader, types, reader.nullable("sliding_window", int, 4096))
    return DecoderConfig(**fields, head_norms=True, final_softcap=reader.nullable("final_logit_softcapping", float))


def _gemma3_ropes(reader: ConfigReader, max_position: int) -> tuple[RopeConfig, RopeConfig]:
    """The sliding layers' rope and the full layers'; `rope_scaling` scales the full layers only."""
    head_dim = reader.default("head_dim", 256)
    nested = reader.nullable("rope_parameters", dict) or {}
    full = {**(nested.get("full_attention") or {}), **(reader.nullable("rope_scaling", dict) or {})}
    local = dict(nested.get("sliding_attention") or {})
    full.setdefault("rope_theta", reader.default("rope_theta", 1e6))
    local.setdefault("rope_theta", reader.default("rope_local_base_freq", 1e4))
    where = f"{reader.where}: rope_parameters"
    readers = ConfigReader(local, f"{where}: sliding_attention"), ConfigReader(full, f"{where}: full_attention")
    ropes = [rope_from(part, head_dim, max_position=max_position) for part in readers]
    for part, rope in zip(readers, ropes, strict=True):
        if rope.rotary_dim != head_dim:
            raise part.refuse("partial_rotary_factor", "1.0 for this architecture")
    return ropes[0], ropes[1]
