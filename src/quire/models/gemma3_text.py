"""The text model of Gemma 3 checkpoints that also hold an image encoder, which is left out."""

from __future__ import annotations

from quire.models.gemma import GemmaForCausalLM


class Gemma3TextOfComposite(GemmaForCausalLM):
    """Gemma 3 whose image encoder and projector are ignored."""

    ignored_weights = (*GemmaForCausalLM.ignored_weights, r"(model\.)?(vision_tower|multi_modal_projector)\..*")
