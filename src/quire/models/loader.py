"""Builds a model and fills it: the only place where weights are read.

Strict both ways, and before the first byte is read: every tensor of the checkpoint has a slot in the model or is listed
as ignored, every slot has its tensor, every shape fits. Files are memory-mapped and tensors copied one at a time into
storage that exists already, and given back, so the whole model is never held twice. What a slot does with a tensor is
its layer's business. Weights that an earlier start has packed are mapped instead (`kept_weights.py`).
"""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from quire.attention.interface import AttentionPlan
from quire.base.errors import WeightError
from quire.layers.config import KVLayerSpec
from quire.layers.context import BuildContext
from quire.layers.weights import WeightSlot
from quire.models.checkpoint import Checkpoint
from quire.models.info import ModelInfo
from quire.models.inspect import DTYPE_NAMES
from quire.models.kept_weights import KeptWeights
from quire.models.packed_cache import PackedCache
from quire.models.registry import choose_implementation
from quire.models.tensor_headers import TensorHeader
from quire.models.weight_file import WeightFile
from quire.quant.packed import PackedSlot

Progress = Callable[[str, int, int], None]
"""Called after each tensor with its file, the bytes read so far and the bytes to read in all."""
_SHOWN = 5
_TIED_HEADS = ("lm_head.weight", "embed_out.weight")


class OutputHead(Protocol):
    """What the loader asks of an output head."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether the head's matrix is what `tensor` [V, E] would become in it."""

    @property
    def is_tied(self) -> bool:
        """Whether the matrix is the embedding's."""


class LoadableModel(Protocol):
    """What a runner runs and this file fills: a native `CausalLM` or the generic adapter."""

    kv_layers: tuple[KVLayerSpec, ...]

    @property
    def ignored_weights(self) -> tuple[str, ...]:
        """Patterns of checkpoint tensors that carry nothing the model needs."""

    @property
    def weight_prefixes(self) -> tuple[tuple[str, str], ...]:
        """Other beginnings of checkpoint names and what they stand for: (found, meant)."""

    @property
    def lm_head(self) -> OutputHead | None:
        """The output head; None where the model writes no text."""

    def __call__(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """Hidden states [T, E]; see `CausalLM.forward`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: [R, E] → float32 [R, V]."""

    def weight_slots(self) -> dict[str, WeightSlot]:
        """Every place a checkpoint tensor fills, by the tensor's name."""

    def weight_alternatives(self) -> dict[str, WeightSlot]:
        """Tensors that some checkpoints have in place of several others; a slot's `fills` names those."""


@dataclass(frozen=True, slots=True)
class Match:
    """A stored tensor and the slot it fills."""

    name: str
    header: TensorHeader
    slot: WeightSlot


def load_model(
    info: ModelInfo, context: BuildContext, *, cache: PackedCache | None = None, progress: Progress | None = None
) -> LoadableModel:
    """Build the model `info` describes and fill it from its files, or with what `cache` keeps of them.

    Raises:
        UnsupportedModelError: when no implementation runs it; before any weight is read.
        WeightError: when files and model do not fit together, naming the tensor.
    """
    model = build_model(info, context)
    load_weights(model, Checkpoint(Path(info.path)), cache=cache, progress=progress)
    return model


def build_model(info: ModelInfo, context: BuildContext) -> LoadableModel:
    """The model with its storage allocated and nothing in it; raises UnsupportedModelError."""
    entry = choose_implementation(info.config).entry
    if entry is None:
        from quire.models.adapter import build_adapter  # imports transformers, which no native model needs

        return build_adapter(info, context)
    model_class = getattr(importlib.import_module(entry.module), entry.class_name)
    return cast(LoadableModel, model_class(entry.read(info.config), context).eval())


def load_weights(
    model: LoadableModel,
    checkpoint: Checkpoint,
    *,
    cache: PackedCache | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill every slot of `model` from the checkpoint; raises WeightError as `load_model` does."""
    began = time.perf_counter()
    matches = match_tensors(model, checkpoint.tensors)
    used = {match.name for match in matches}
    heads = [name for name in checkpoint.tensors if _is_tied_head(model, name) and name not in used]
    kept = None if cache is None else _kept(cache, checkpoint, matches, heads)
    if kept is not None and kept.restore():
        matches, heads = [match for match in matches if not isinstance(match.slot, PackedSlot)], []
        kept = None
    total, done = sum(match.header.num_bytes for match in matches), 0
    for file in checkpoint.weight_files:
        wanted = [match for match in matches if match.header.file == file]
        for match in _load_file(checkpoint.path / file, wanted, kept):
            done += match.header.num_bytes
            if progress is not None:
                progress(file, done, total)
    for name in heads:
        _check_tied_head(model, checkpoint, name, kept)
    if kept is not None:
        kept.keep(seconds=time.perf_counter() - began)


def _kept(
    cache: PackedCache, checkpoint: Checkpoint, matches: Sequence[Match], heads: Sequence[str]
) -> KeptWeights | None:
    """What `cache` may hold of these weights; None where none are packed."""
    packed = {match.name: match.slot for match in matches if isinstance(match.slot, PackedSlot)}
    sources = {name: checkpoint.tensors[name] for name in (*packed, *heads)}
    slots = {name: slot.matrix for name, slot in packed.items()}
    return KeptWeights(cache, checkpoint, sources=sources, slots=slots) if packed else None


def match_tensors(model: LoadableModel, tensors: Mapping[str, TensorHeader]) -> list[Match]:
    """Pair stored tensors with slots.

    Raises:
        WeightError: for tensors without a slot, slots without a tensor, and wrong shapes or dtypes.
    """
    slots = model.weight_slots()
    known = slots | model.weight_alternatives()
    ignored = re.compile("|".join(model.ignored_weights) or r"(?!)")
    matches: dict[str, Match] = {}
    unused: list[str] = []
    for name, header in tensors.items():
        slot_name = _slot_name(name, known, model.weight_prefixes)
        if slot_name is not None and slot_name not in matches:
            matches[slot_name] = Match(name, header, known[slot_name])
        elif slot_name is not None or not ignored.fullmatch(name):
            unused.append(name)
    filled = Counter(name for found in matches for name in (known[found].fills or (found,)))
    unused += [name for name, times in filled.items() if times > 1]
    _check_all_used(unused, [name for name in slots if name not in filled])
    for match in matches.values():
        _check_fit(match)
    return list(matches.values())


def _slot_name(name: str, slots: Mapping[str, WeightSlot], prefixes: Iterable[tuple[str, str]]) -> str | None:
    if name in slots:
        return name
    for found, meant in prefixes:
        if name.startswith(found) and meant + name[len(found) :] in slots:
            return meant + name[len(found) :]
    return None


def _is_tied_head(model: LoadableModel, name: str) -> bool:
    return model.lm_head is not None and model.lm_head.is_tied and name.endswith(_TIED_HEADS)


def _check_tied_head(model: LoadableModel, checkpoint: Checkpoint, name: str, kept: KeptWeights | None) -> None:
    """A stored copy of a tied head must be one: where it differs, the checkpoint does not mean it to be tied."""
    header = checkpoint.tensors[name]
    file = WeightFile(checkpoint.path / header.file)
    if kept is not None:
        kept.add(name, file.view(header))
    assert model.lm_head is not None
    if not model.lm_head.holds(file.tensor(header)):
        raise WeightError(
            f"{name} differs from the embedding, although config.json ties them; to use it, set tie_word_embeddings to "
            "false there"
        )


def _check_all_used(unused: list[str], unfilled: list[str]) -> None:
    problems = []
    if unused:
        problems.append(f"{len(unused)} tensors of the checkpoint have no place in the model: {_listed(unused)}")
    if unfilled:
        problems.append(f"{len(unfilled)} weights of the model are not in the checkpoint: {_listed(unfilled)}")
    if problems:
        raise WeightError("; ".join(problems) + ". Files and config.json must be of the same model")


def _check_fit(match: Match) -> None:
    header = match.header
    if header.shape != match.slot.shape:
        raise WeightError(
            f"{match.name} in {header.file} has shape {list(header.shape)}; "
            f"config.json implies {list(match.slot.shape)}"
        )
    if header.dtype not in DTYPE_NAMES:
        raise WeightError(
            f"{match.name} in {header.file} is stored as {header.dtype}; allowed: {', '.join(DTYPE_NAMES)}. "
            "Quantized weights are not supported unless config.json declares a supported quantization_config"
        )


def _load_file(path: Path, matches: list[Match], kept: KeptWeights | None) -> Iterable[Match]:
    if not matches:
        return
    file = WeightFile(path)
    with torch.no_grad():
        for match in matches:
            if kept is not None:
                kept.add(match.name, file.view(match.header))
            match.slot.load(file.tensor(match.header))
            if kept is not None:
                kept.wait()
            file.release(match.header)
            yield match


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
