"""What sentence-transformers' files beside a checkpoint say: how its hidden states become an embedding. Torch-free.

The files are modules.json (the chain of modules), the pooling module's config.json, and sentence_bert_config.json. What
they ask for and quire does not compute is refused by name, because it would change every embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from quire.base.errors import UnsupportedModelError, WeightError
from quire.models.checkpoint import Checkpoint
from quire.models.tensor_headers import parse_json

_MODULES = "modules.json"
_LENGTHS = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_KINDS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
_NAMES = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
"""How newer files write the kind of pooling → ours."""
_MODE = "pooling_mode_"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceFiles:
    """How a checkpoint makes embeddings, as far as its files say."""

    kind: str
    """One of `base.pooling.POOLING_KINDS`."""
    normalizes: bool
    max_length: int | None = None
    """Tokens, special ones included; None where the files name no length."""
    notes: tuple[str, ...] = ()


def read_sentence_files(checkpoint: Checkpoint) -> SentenceFiles | None:
    """What the files say; None where there is no modules.json.

    Raises:
        UnsupportedModelError: they ask for a module or a kind of pooling that quire does not compute.
        WeightError: a file is damaged.
    """
    if not (checkpoint.path / _MODULES).is_file():
        return None
    modules = _modules(checkpoint)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UnsupportedModelError(
            f"{_MODULES}: the modules are {', '.join(kinds)[:200] or 'none'}; supported: Transformer, Pooling and, "
            f"after them, Normalize"
        )
    lengths = checkpoint.optional_json(_LENGTHS)
    if lengths.get("do_lower_case") is True:
        raise UnsupportedModelError(f"{_LENGTHS}: do_lower_case is true; supported: false (the tokenizer lowers case)")
    return SentenceFiles(
        kind=_pooling_kind(checkpoint, modules[1][1]),
        normalizes="Normalize" in kinds,
        max_length=_max_length(lengths),
        notes=_prompt_notes(checkpoint.optional_json(_PROMPTS)),
    )


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(class name, folder) of each module in order."""
    text = (checkpoint.path / _MODULES).read_bytes()
    listed = parse_json(b'{"modules": ' + text + b"}", _MODULES)["modules"]  # the one file that is a list
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise WeightError(f"{_MODULES} is damaged: it must be a list of modules")
    return [(str(entry.get("type")).rpartition(".")[2], str(entry.get("path") or "")) for entry in listed]


def _pooling_kind(checkpoint: Checkpoint, folder: str) -> str:
    if PurePosixPath(folder).name != folder or not folder or folder.startswith("."):
        raise WeightError(f"{_MODULES} is refused: {folder[:200]!r} must be a folder beside it")
    where = f"{folder}/config.json"
    config = checkpoint.optional_json(where)
    if isinstance(config.get("pooling_mode"), str):
        asked = [config["pooling_mode"]]
        kinds = [_NAMES[name] for name in asked if name in _NAMES]
    else:
        asked = [key for key, value in config.items() if key.startswith(_MODE) and value is True]
        kinds = [_KINDS[key.removeprefix(_MODE)] for key in asked if key.removeprefix(_MODE) in _KINDS]
    if len(asked) != 1 or len(kinds) != 1:
        found = ", ".join(asked)[:200] or "none"
        raise UnsupportedModelError(f"{where}: the pooling is {found}; supported: one of cls, mean, max, lasttoken")
    return kinds[0]


def _max_length(config: Mapping[str, Any]) -> int | None:
    length = config.get("max_seq_length")
    if length is None:
        return None
    if type(length) is not int or length < 1:
        raise UnsupportedModelError(f"{_LENGTHS}: max_seq_length is {length!r}; supported: whole numbers from 1")
    return length


def _prompt_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    if not config.get("default_prompt_name"):
        return ()
    name = str(config["default_prompt_name"])[:40]
    return (f"{_PROMPTS}: the default prompt {name!r} is not put before inputs; send it as part of them",)
