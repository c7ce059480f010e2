"""Three hundred schemas on a trained and on a random model: what ends is valid, and nearly everything ends."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from quire import LLM, SamplingParams, StructuredOutputsParams

NUM_SCHEMAS = 300
MAX_TOKENS = 1024


class SchemaWriter:
    """Bounded schemas: nested objects and arrays, enums, anyOf, references, patterns and ranges."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: dict[str, object] = {}

    def schema(self) -> dict[str, object]:
        whole = self._object(depth=3)
        return whole | ({"$defs": self._definitions} if self._definitions else {})

    def _any(self, depth: int) -> dict[str, object]:
        leaves = [self._string, self._integer, self._number, self._enum, self._pattern, self._simple]
        if depth == 0:
            return self._random.choice(leaves)()
        nodes = [self._object, self._array, self._any_of, self._reference]
        return self._random.choice([*leaves, *(lambda node=node: node(depth - 1) for node in nodes)])()

    def _object(self, depth: int) -> dict[str, object]:
        names = self._random.sample(["id", "name", "größe", "a b", "items", "ok", "n1"], self._random.randint(1, 4))
        required = [name for name in names if self._random.random() < 0.7]
        properties = {name: self._any(depth) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _array(self, depth: int) -> dict[str, object]:
        low = self._random.randint(0, 2)
        return {
            "type": "array",
            "items": self._any(depth),
            "minItems": low,
            "maxItems": low + self._random.randint(0, 2),
        }

    def _any_of(self, depth: int) -> dict[str, object]:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(2, 3))]}

    def _reference(self, depth: int) -> dict[str, object]:
        name = f"d{len(self._definitions)}"
        self._definitions[name] = {}
        self._definitions[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def _string(self) -> dict[str, object]:
        low = self._random.randint(0, 4)
        return {"type": "string", "minLength": low, "maxLength": low + self._random.randint(0, 12)}

    def _integer(self) -> dict[str, object]:
        low = self._random.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + self._random.randint(0, 5000)}

    def _number(self) -> dict[str, object]:
        low = self._random.randint(-10, 10)
        return {"type": "number", "minimum": low, "exclusiveMaximum": low + self._random.randint(1, 50)}

    def _enum(self) -> dict[str, object]:
        return {"enum": self._random.sample(["red", 'gr"ün', "b\\u", 1, 2.5, None, True, "", {"k": 1}], 3)}

    def _pattern(self) -> dict[str, object]:
        patterns = ["^[A-Z]{2}-[0-9]{3}$", "^(ab|cd){1,3}$", r"^\d{4}-\d{2}$", "^[a-f0-9]{8}$"]
        return {"type": "string", "pattern": self._random.choice(patterns)}

    def _simple(self) -> dict[str, object]:
        return self._random.choice(
            [{"type": "boolean"}, {"type": "null"}, {"const": "fixed"}, {"type": "string", "format": "date"}]
        )


@pytest.fixture(scope="session")
def random_path(draft_path, tmp_path_factory):
    """A checkpoint with the draft model's shape and tokenizer and random weights."""
    folder = tmp_path_factory.mktemp("random") / "model"
    shutil.copytree(draft_path, folder)
    generator = torch.Generator().manual_seed(5)
    for file in Path(folder).glob("*.safetensors"):
        tensors = load_file(file)
        drawn = {n: (torch.randn(t.shape, generator=generator) * 0.05).to(t.dtype) for n, t in tensors.items()}
        save_file(drawn, file)
    return str(folder)


@pytest.mark.parametrize("model", ["trained", "random"])
def test_what_ends_is_valid_and_nearly_everything_ends(model, demo_path, random_path):
    """S49: 300 schemas and seeds; at least 95 % end within 1,024 tokens, and all of those are valid."""
    schemas = [SchemaWriter(seed).schema() for seed in range(NUM_SCHEMAS)]
    params = [
        SamplingParams(
            temperature=1.0, seed=seed, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputsParams(json=schema)
        )
        for seed, schema in enumerate(schemas)
    ]
    with LLM(demo_path if model == "trained" else random_path, max_model_len=1280, max_num_seqs=64) as llm:
        outputs = llm.generate(["Answer in JSON: "] * NUM_SCHEMAS, params, use_tqdm=False)
    ended = [
        (schema, output.outputs[0].text)
        for schema, output in zip(schemas, outputs, strict=True)
        if output.outputs[0].finish_reason == "stop"
    ]
    assert len(ended) >= 0.95 * NUM_SCHEMAS
    invalid = [(text, schema) for schema, text in ended if not Draft202012Validator(schema).is_valid(json.loads(text))]
    assert invalid == []
