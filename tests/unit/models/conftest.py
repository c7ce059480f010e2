"""Builds checkpoint directories byte by byte, so that tests can damage every part of them."""

import json
from pathlib import Path

import pytest

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 64,
    "eos_token_id": 2,
}
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I64": 8, "F8_E4M3": 1}


class FileMaker:
    """Writes configuration and weight files into one directory."""

    def __init__(self, path: Path):
        self.path = path

    def json(self, name, value):
        (self.path / name).write_text(json.dumps(value))
        return self

    def config(self, **changes):
        """config.json of a small Llama with some keys changed; None removes a key."""
        values = LLAMA | changes
        return self.json("config.json", {k: v for k, v in values.items() if v is not None or k in changes})

    def tensors(self, name, shapes, dtype="F32"):
        """A safetensors file of zeros, from a mapping of tensor names to shapes."""
        header, position = {}, 0
        for tensor, shape in shapes.items():
            size = ITEM_BYTES[dtype]
            for dim in shape:
                size *= dim
            header[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
            position += size
        return self.raw(name, json.dumps(header).encode(), bytes(position))

    def raw(self, name, header: bytes, data: bytes, *, length: int | None = None):
        """A safetensors file with any bytes as header and any number as its length."""
        prefix = (len(header) if length is None else length).to_bytes(8, "little")
        (self.path / name).write_bytes(prefix + header + data)
        return self


@pytest.fixture
def checkpoint_dir(tmp_path):
    """A writer of files in a fresh directory; its `path` is the directory."""
    return FileMaker(tmp_path)
