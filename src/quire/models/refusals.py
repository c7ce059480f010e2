"""Why a checkpoint cannot be run, told from config.json alone: one named reason per kind of model.

Rules look at the keys that make a model what it is (a state size, a latent rank, a vision part) rather than at names,
so that tomorrow's model of a known kind is refused for the right reason too. Names decide only where no key does.
Torch-free; it knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]

_STATE_KEYS = (
    "ssm_cfg", "ssm_state_size", "state_size", "mamba_d_state", "mamba_d_ssm", "mamba_expand", "mamba_num_heads",
    "linear_conv_kernel_dim", "linear_num_value_heads", "linear_attn_config", "conv_L_cache", "lru_width",
    "mlstm_round_up_to_multiple_of", "layer_norm_before_rwkv",
)  # fmt: skip
_STATE_TYPES = {"rwkv", "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "xlstm", "minimax", "plamo2", "jamba"}
_STATE_LAYERS = ("linear_attention", "mamba", "recurrent", "conv", "hybrid", "kda", "gdn", "moe_mamba", "rwkv")
_MEDIA_KEYS = ("vision_config", "audio_config", "speech_config", "vit_config", "image_token_id", "audio_token_id")
_MEDIA_TYPES = {"whisper", "speech_to_text", "musicgen", "moshi", "fuyu", "git", "trocr", "blip-2"}
_ENCODER_TYPES = {
    "bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "modernbert",
}  # fmt: skip
_ENCODER_ENDINGS = (
    "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining",
    "ForMultipleChoice", "Encoder", "EncoderModel",
)  # fmt: skip
_ADAPTER_ROPES = ("default", "linear", "llama3", "yarn")
_ALIBI_TYPES = {"bloom", "mpt"}


def refusal_reason(config: Config, architecture: str) -> str | None:
    """The reason why no implementation runs a model with this configuration; None when nothing speaks against it."""
    for rule in _RULES:
        reason = rule(config, architecture)
        if reason is not None:
            return reason
    return None


def quantization(config: Config) -> str | None:
    """The weight format a quantized checkpoint declares, such as "gptq, 4 bits"; None for plain weights."""
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return None
    if not isinstance(section, Mapping):
        return "of an unreadable quantization_config"
    method = str(section.get("quant_method") or section.get("quant_algo") or section.get("format") or "unnamed method")
    bits = section.get("bits") or section.get("weight_bits")
    if section.get("load_in_4bit"):
        bits = 4
    elif section.get("load_in_8bit"):
        bits = 8
    return f"{method[:40]}, {bits} bits" if isinstance(bits, int) else method[:40]


def quantization_reason(config: Config) -> str | None:
    """Why quantized weights are not loaded; None for plain weights."""
    scheme = quantization(config)
    if scheme is None:
        return None
    return f"its weights are quantized ({scheme}), a format this version does not load; use the unquantized checkpoint"


def _quantized(config: Config, architecture: str) -> str | None:
    return quantization_reason(config)


def _encoder_decoder(config: Config, architecture: str) -> str | None:
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder model; only decoders generate here"
    return None


def _media(config: Config, architecture: str) -> str | None:
    key = next((key for key in _MEDIA_KEYS if config.get(key) is not None), None)
    if key is not None:
        return f"it takes images or sound ({key}); only text models run"
    if config.get("model_type") in _MEDIA_TYPES:
        return "it takes images or sound; only text models run"
    return None


def _latent_attention(config: Config, architecture: str) -> str | None:
    if config.get("kv_lora_rank") is not None:
        return "its attention caches latent vectors (MLA, kv_lora_rank), which the paged K and V cache does not hold"
    return None


def _state_space(config: Config, architecture: str) -> str | None:
    key = next((key for key in _STATE_KEYS if config.get(key) is not None), None)
    if key is not None:
        return f"its layers keep a recurrent state ({key}: state-space or linear attention), which has no pages"
    if config.get("model_type") in _STATE_TYPES or "Mamba" in architecture:
        return "its layers keep a recurrent state (state-space or linear attention), which has no pages"
    kinds = config.get("layer_types")
    for kind in kinds if isinstance(kinds, list) else ():
        if isinstance(kind, str) and kind in _STATE_LAYERS:
            return f"some of its layers keep a recurrent state (layer_types has {kind}), which has no pages"
    return None


def _encoder(config: Config, architecture: str) -> str | None:
    if architecture.endswith(_ENCODER_ENDINGS) or config.get("model_type") in _ENCODER_TYPES:
        return "it is an encoder or a classifier of a family that has no implementation here, and generates no text"
    if architecture.endswith("Model") and not architecture.endswith("LMHeadModel"):
        return "it has no language-model head; only decoders with one generate text"
    return None


_RULES: tuple[Callable[[Config, str], str | None], ...] = (
    _encoder_decoder,
    _encoder,
    _media,
    _latent_attention,
    _state_space,
    _quantized,
)


def adapter_refusal_reason(config: Config) -> str | None:
    """What only the generic adapter cannot run: attention shaped by a mask, and positions that depend on the batch."""
    if config.get("model_type") in _ALIBI_TYPES or config.get("alibi"):
        return "its ALiBi positions live in the attention mask, which the adapter does not build"
    kinds = config.get("layer_types")
    has_chunks = isinstance(kinds, list) and "chunked_attention" in kinds
    if has_chunks or config.get("attention_chunk_size") is not None:
        return "it attends in chunks (attention_chunk_size), which the paged attention does not"
    for section in _rope_sections(config):
        rope = section.get("rope_type") or section.get("type")
        if rope in ("dynamic", "longrope", "su"):
            return f"its {rope} rope scales with the longest sequence of a batch, so results would depend on neighbours"
        if rope is not None and rope not in _ADAPTER_ROPES:
            return f"its rope type {str(rope)[:40]!r} is not known; allowed: {', '.join(_ADAPTER_ROPES)}"
    return None


def _rope_sections(config: Config) -> list[Mapping[str, Any]]:
    """Every object of rope parameters, at the top or one level down (one per layer type)."""
    found: list[Mapping[str, Any]] = []
    for key in ("rope_scaling", "rope_parameters"):
        section = config.get(key)
        if isinstance(section, Mapping):
            found += [section, *(value for value in section.values() if isinstance(value, Mapping))]
    return found


def rope_words(config: Config) -> str:
    """The rope scheme in words for a model that no native reader describes, such as "llama3 x8"."""
    names = []
    for section in _rope_sections(config):
        kind, factor = section.get("rope_type") or section.get("type"), section.get("factor")
        if isinstance(kind, str):
            names.append(f"{kind} x{factor:g}" if isinstance(factor, int | float) else kind)
    if names:
        return " / ".join(dict.fromkeys(names))
    return "default" if config.get("rope_theta") is not None else "unknown"
