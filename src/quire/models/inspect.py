"""From a directory to a `ModelInfo`, or to an error that names what is not supported; no weight is read.

It joins what the other torch-free parts know: the files (`checkpoint`), the implementation (`registry`), the numbers
(the family's reader, or `generic_config`) and the sampling defaults. `quire check` and the engine both start here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire.base.errors import UnsupportedModelError
from quire.layers.config import EncoderConfig
from quire.models.checkpoint import Checkpoint
from quire.models.generation_defaults import default_sampling, eos_token_ids
from quire.models.generic_config import GenericDecoder, read_generic
from quire.models.info import ModelInfo
from quire.models.pooling_defaults import pooling_of
from quire.models.readers_composite import text_part
from quire.models.registry import Choice, choose_implementation
from quire.models.sentence_files import SentenceFiles, read_sentence_files
from quire.models.tensor_headers import TensorHeader
from quire.models.weight_sizes import loaded_shapes

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the dtypes that weights may have → ours."""
QUANTIZATION_FILES = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
"""Side files that mark quantized weights where config.json does not say so."""
_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
_TEXT_ONLY = "only the text part runs; images and sound are not taken"
_MISSING_WEIGHTS = "the weights are not here; sizes come from the configuration alone"


def inspect_model(path: str | Path, *, require_weights: bool = True) -> ModelInfo:
    """Describe the checkpoint in a directory from its JSON files and the headers of its weight files.

    With `require_weights=False` a directory that holds no weights yet is described too, and a note says so.

    Raises:
        ConfigError: when the directory is no checkpoint.
        UnsupportedModelError: when no implementation runs it, naming the reason.
        WeightError: when a file is damaged, missing or of a refused format.
    """
    checkpoint = Checkpoint(Path(path))
    config = checkpoint.config
    choice = choose_implementation(config)
    _refuse_quantized_files(checkpoint, choice)
    read = None if choice.entry is None else choice.entry.read(config)
    sizes = read_sizes(choice, config)
    is_empty = not require_weights and not checkpoint.has_weights
    tensors: Mapping[str, TensorHeader] = {} if is_empty else checkpoint.tensors
    sentence = read_sentence_files(checkpoint)
    sampling, sampling_notes = default_sampling(checkpoint.generation_config)
    return ModelInfo(
        path=str(path),
        architecture=choice.architecture,
        family=choice.family,
        implementation="native" if choice.entry is not None else "adapter",
        config=text_part(config) if choice.entry is not None else config,
        kv_layers=sizes.kv_layers,
        max_position=_shortened(sizes.max_position, sentence),
        vocab_rows=sizes.vocab_rows,
        stored_dtype=_stored_dtype(tensors, config),
        weight_files=() if is_empty else checkpoint.weight_files,
        num_parameters=sum(header.num_elements for header in tensors.values()),
        shapes=_shapes(choice, config, tensors),
        eos_token_ids=eos_token_ids(checkpoint.generation_config, config, vocab_rows=sizes.vocab_rows),
        default_sampling=sampling,
        pooling=pooling_of(read, sizes.hidden_size, sentence),
        is_encoder=isinstance(read, EncoderConfig),
        rope=sizes.rope,
        notes=(
            *_code_notes(checkpoint),
            *((_TEXT_ONLY,) if "text_config" in config else ()),
            *sampling_notes,
            *(() if sentence is None else sentence.notes),
            *((_MISSING_WEIGHTS,) if is_empty else ()),
        ),
    )


def _shapes(
    choice: Choice, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> dict[str, tuple[int, ...]]:
    if choice.entry is None:
        return {}
    read = choice.entry.read(config)
    ignored = read.ignored_weights if isinstance(read, EncoderConfig) else ()
    shapes = {name: header.shape for name, header in tensors.items()}
    return loaded_shapes(shapes, is_tied=read.tie_word_embeddings, ignored=ignored)


def read_sizes(choice: Choice, config: Mapping[str, Any]) -> GenericDecoder:
    """The numbers of a configuration that sizing needs; raises UnsupportedModelError naming the key that is wrong."""
    if choice.entry is None:
        return read_generic(config)
    decoder = choice.entry.read(config)
    return GenericDecoder(
        kv_layers=decoder.kv_layers,
        vocab_rows=decoder.vocab_size,
        max_position=decoder.max_position,
        rope=decoder.rope,
        hidden_size=decoder.output_size,
    )


def _shortened(max_position: int, sentence: SentenceFiles | None) -> int:
    """The longest prompt: what the positions allow, or less where an embedding model was trained for less."""
    shorter = None if sentence is None else sentence.max_length
    return max_position if shorter is None else min(max_position, shorter)


def _refuse_quantized_files(checkpoint: Checkpoint, choice: Choice) -> None:
    for name in QUANTIZATION_FILES:
        if (checkpoint.path / name).is_file():
            raise UnsupportedModelError(
                f"{choice.architecture} is not supported here: {name} says that its weights are quantized, in a format "
                "this version does not load; use the unquantized checkpoint"
            )


def _stored_dtype(tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]) -> str:
    """The float dtype that most bytes are in; what config.json says when there are no weights to look at."""
    counts: Counter[str] = Counter()
    for header in tensors.values():
        if header.dtype in DTYPE_NAMES:
            counts[DTYPE_NAMES[header.dtype]] += header.num_bytes
    if counts:
        return counts.most_common(1)[0][0]
    declared = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return declared if declared in DTYPE_NAMES.values() else "float32"


def _code_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """SEC-5: what a directory says about running its own code, which is never done."""
    keys = [key for key in _CODE_KEYS if checkpoint.config.get(key)]
    files = sorted(file.name for file in checkpoint.path.glob("*.py"))
    notes = [f"config.json: {key} is ignored; code of a checkpoint is never run" for key in keys]
    return (*notes, *(f"{name} is ignored; code of a checkpoint is never run" for name in files[:3]))
