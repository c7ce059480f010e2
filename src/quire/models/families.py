"""The native families that generate: which class runs an architecture, which reader makes its configuration.

Torch-free: `module` is imported only when a model is built, so sizing and `quire check` never load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.layers.config import DecoderConfig, EncoderConfig
from quire.models import readers, readers_classic, readers_composite


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    """One architecture of config.json's `architectures`."""

    family: str
    """Name in the compatibility table."""
    module: str
    class_name: str
    read: Callable[[Mapping[str, Any]], DecoderConfig | EncoderConfig]
    """Reads config.json (the text part of a composite one); raises UnsupportedModelError naming key and value."""


Reader = Callable[..., DecoderConfig | EncoderConfig]


def _entry(family: str, read: Reader, module: str, class_name: str) -> FamilyEntry:
    return FamilyEntry(family, f"quire.models.{module}", class_name, read)


FAMILIES: dict[str, FamilyEntry] = {
    "LlamaForCausalLM": _entry("LLaMA", readers.read_llama, "llama", "LlamaForCausalLM"),
    "MistralForCausalLM": _entry("Mistral", readers.read_mistral, "llama", "LlamaForCausalLM"),
    "Qwen2ForCausalLM": _entry("Qwen2", readers.read_qwen2, "llama", "LlamaForCausalLM"),
    "Qwen3ForCausalLM": _entry("Qwen3", readers.read_qwen3, "llama", "LlamaForCausalLM"),
    "Phi3ForCausalLM": _entry("Phi-3", readers.read_phi3, "phi3", "Phi3ForCausalLM"),
    "Gemma2ForCausalLM": _entry("Gemma 2", readers.read_gemma2, "gemma", "GemmaForCausalLM"),
    "Gemma3ForCausalLM": _entry("Gemma 3", readers.read_gemma3, "gemma", "GemmaForCausalLM"),
    "Gemma3ForConditionalGeneration": _entry(
        "Gemma 3", readers_composite.read_gemma3_text, "gemma3_text", "Gemma3TextOfComposite"
    ),
    "MixtralForCausalLM": _entry("Mixtral", readers.read_mixtral, "moe", "MixtralForCausalLM"),
    "Qwen3MoeForCausalLM": _entry("Qwen3-MoE", readers.read_qwen3_moe, "moe", "MoeForCausalLM"),
    "FalconForCausalLM": _entry("Falcon", readers_classic.read_falcon, "falcon", "FalconForCausalLM"),
    "GPTNeoXForCausalLM": _entry("GPT-NeoX", readers_classic.read_gpt_neox, "gpt_neox", "GPTNeoXForCausalLM"),
    "GPT2LMHeadModel": _entry("GPT-2", readers_classic.read_gpt2, "gpt2", "GPT2LMHeadModel"),
    "OPTForCausalLM": _entry("OPT", readers_classic.read_opt, "opt", "OPTForCausalLM"),
}
"""By architecture name."""
