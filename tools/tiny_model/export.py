"""Writes a model folder as Hugging Face tools and quire read it.

Knows: the files' form. Does not know: training and evaluation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tools.tiny_model.model import TinyLlama
from tools.tiny_model.tokenizer import Encoder, write_tokenizer_files


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(model: TinyLlama, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes configuration, tokenizer and bfloat16 weights; the weights are replaced atomically."""
    encoder = Encoder(tokenizer)
    write_tokenizer_files(tokenizer, folder)
    _write_json(folder / "config.json", model.c.to_hf(encoder.end_id, encoder.pad_id))
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": [encoder.end_id, encoder.pad_id],
        "pad_token_id": encoder.pad_id,
    }
    _write_json(folder / "generation_config.json", generation)
    weights = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.state_dict().items()}
    part = folder / "model.safetensors.part"
    save_file(weights, str(part), metadata={"format": "pt"})
    # The library writes for the owner alone, but a package is read by anyone.
    part.chmod(0o644)
    os.replace(part, folder / "model.safetensors")
