"""config.json of checkpoints that hold a text model beside others: the text part, read for text alone. Torch-free.

Such files leave out of `text_config` what equals the defaults of its configuration class in `transformers`, even the
number of heads, so those defaults stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.layers.config import DecoderConfig
from quire.models.readers import read_gemma3

_OTHER_PARTS = ("text_config", "vision_config", "audio_config")
_GEMMA3_DEFAULTS = {
    "num_hidden_layers": 26,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
}


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's configuration: `text_config` with what the file says for all parts around it."""
    section = config.get("text_config")
    if not isinstance(section, Mapping):
        return dict(config)
    shared = {key: value for key, value in config.items() if key not in _OTHER_PARTS}
    return {**shared, **section, "architectures": config.get("architectures")}


def read_gemma3_text(raw: Mapping[str, Any]) -> DecoderConfig:
    """The text model of a Gemma 3 that also sees images (4B to 27B, 2025); images are not taken here."""
    return read_gemma3({**_GEMMA3_DEFAULTS, **text_part(raw)})
