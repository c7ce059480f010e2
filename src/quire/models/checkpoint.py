"""Finds the files of a checkpoint directory and reads the small ones; the weights only as headers.

It knows the Hugging Face layout: config.json, generation_config.json, model.safetensors or its sharded form with an
index. Nothing found in a directory is ever imported, unpickled or executed (SEC-3, SEC-5), and no name found in a file
leads out of the directory (SEC-8). Torch-free. Where the directory comes from is `models/hub.py`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quire.base.errors import ConfigError, WeightError
from quire.models.tensor_headers import TensorHeader, read_json_file, read_tensor_headers

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory. Files are read when first asked for and remembered."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; raises ConfigError when there is none, WeightError when it is damaged."""
        file = self.path / "config.json"
        if file.is_file():
            return read_json_file(file)
        if (self.path / "adapter_config.json").is_file():
            raise ConfigError(f"{self.path} holds a LoRA adapter, not a model; merge it into its base model first")
        raise ConfigError(f"{self.path} has no config.json; model must be a Hugging Face checkpoint directory")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, empty when there is none."""
        return self.optional_json("generation_config.json")

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the safetensors files, in order.

        Raises:
            WeightError: when there are none, the index is damaged, a shard is missing, or only refused formats exist.
        """
        if (self.path / SINGLE_FILE).is_file():
            return (SINGLE_FILE,)
        if (self.path / INDEX_FILE).is_file():
            return tuple(sorted(set(self._weight_map.values())))
        raise WeightError(self._no_weights_reason())

    @cached_property
    def tensors(self) -> dict[str, TensorHeader]:
        """Every stored tensor by name, from the headers of the weight files; raises WeightError."""
        result: dict[str, TensorHeader] = {}
        for file in self.weight_files:
            for name, header in read_tensor_headers(self.path / file).items():
                if name in result:
                    raise WeightError(f"tensor {name!r} is in both {result[name].file} and {file}")
                result[name] = header
        if self.weight_files != (SINGLE_FILE,):
            self._check_index(result)
        return result

    @property
    def has_weights(self) -> bool:
        """Whether any weight file lies here, of a kind that is read or refused."""
        return (self.path / SINGLE_FILE).is_file() or (self.path / INDEX_FILE).is_file() or bool(self._refused_files())

    def optional_json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file of that name, empty when there is no such file; raises WeightError."""
        file = self.path / name
        return read_json_file(file) if file.is_file() else {}

    @cached_property
    def declared_weight_bytes(self) -> int | None:
        """Bytes of all weights as the index states them, for a directory whose weights are not here yet."""
        if not (self.path / INDEX_FILE).is_file():
            return None
        metadata = read_json_file(self.path / INDEX_FILE, unique_keys=True).get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
        return size if type(size) is int and size > 0 else None

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        weight_map = read_json_file(self.path / INDEX_FILE, unique_keys=True).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise WeightError(f"{INDEX_FILE} is damaged: weight_map must map tensor names to file names")
        for name, file in weight_map.items():
            if not _is_plain_shard_name(file):
                raise WeightError(
                    f"{INDEX_FILE} is refused: {name[:200]!r} points to {str(file)[:200]!r}; "
                    "a shard must be a .safetensors file in the same directory"
                )
        missing = sorted({file for file in weight_map.values() if not (self.path / file).is_file()})
        if missing:
            shown = ", ".join(missing[:5])
            raise WeightError(f"{len(missing)} of the shards named in {INDEX_FILE} are missing: {shown}")
        return weight_map

    def _check_index(self, tensors: dict[str, TensorHeader]) -> None:
        for name, file in self._weight_map.items():
            if name not in tensors or tensors[name].file != file:
                raise WeightError(f"{INDEX_FILE} says that {name!r} is in {file}, but it is not there")

    def _refused_files(self) -> list[str]:
        names = sorted(file.name for file in self.path.iterdir() if file.is_file())
        return [
            name for name in names
            if (Path(name).suffix in _PICKLE_SUFFIXES and name not in _NOT_WEIGHTS) or name.endswith(".gguf")
        ]  # fmt: skip

    def _no_weights_reason(self) -> str:
        refused = self._refused_files()
        if any(name.endswith(".gguf") for name in refused):
            return f"{self.path} holds GGUF weights ({refused[0]}), which are not read; use the safetensors checkpoint"
        if refused:
            return (
                f"{self.path} holds pickled weights ({refused[0]}), which can run code and are refused; convert them "
                "once, on a machine you trust, with transformers' save_pretrained(..., safe_serialization=True)"
            )
        return f"{self.path} has neither {SINGLE_FILE} nor {INDEX_FILE}"


def _is_plain_shard_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors") or name.startswith("."):
        return False
    return not any(char in name for char in "/\\:\0")
