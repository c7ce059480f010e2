"""LLaMA, and the families that are LLaMA with other numbers: Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from quire.layers.config import DecoderConfig
from quire.layers.decoder import CausalLM


class LlamaForCausalLM(CausalLM[DecoderConfig]):
    """The layout that `CausalLM` builds when nothing is overridden."""
