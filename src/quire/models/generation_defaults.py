"""Reads generation_config.json: which tokens end a sequence, how to sample when a request does not say. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams

_SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Name in generation_config.json → field of `SamplingParams`."""
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0, "min_new_tokens": 0, "top_h": None, "penalty_alpha": None,
    "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
}  # fmt: skip
"""Keys quire does not take from the file, with the values at which that changes nothing."""


def eos_token_ids(generation: Mapping[str, Any], config: Mapping[str, Any], *, vocab_rows: int) -> tuple[int, ...]:
    """Ids that end a sequence: generation_config.json's, else config.json's; ids beyond the vocabulary are dropped."""
    value = generation.get("eos_token_id")
    if value is None:
        value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in ids if type(i) is int and 0 <= i < vocab_rows))


def default_sampling(generation: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`SamplingParams` fields the file sets, and notes on what it sets and quire does not take over."""
    fields: dict[str, Any] = {}
    notes: list[str] = []
    for key, name in _SAMPLING_NAMES.items():
        value = generation.get(key)
        if value is None:
            continue
        value = int(value) if key == "top_k" and isinstance(value, float) and value.is_integer() else value
        if _is_valid(name, value):
            fields[name] = value
        else:
            notes.append(f"generation_config.json: {key} is {str(value)[:40]}, which is out of range and ignored")
    if generation.get("do_sample") is False:
        fields["temperature"] = 0.0
    notes += [
        f"generation_config.json: {key} is {str(generation[key])[:40]} and not taken over"
        for key, neutral in _NEUTRAL.items()
        if generation.get(key) not in (None, neutral)
    ]
    return fields, tuple(notes)


def _is_valid(name: str, value: Any) -> bool:
    try:
        SamplingParams(**{name: value})
    except InvalidRequestError:
        return False
    return True
