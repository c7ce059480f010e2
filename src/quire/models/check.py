"""The support report of a checkpoint: will it run, how, and what does it cost in memory (S125). Torch-free.

A refusal is a result here, not an error. Printing and exit status are the command line's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quire.base.errors import ConfigError, UnsupportedModelError, WeightError
from quire.models.checkpoint import Checkpoint
from quire.models.info import ModelInfo
from quire.models.inspect import inspect_model
from quire.models.refusals import quantization

Verdict = Literal["supported", "adapter", "refused"]
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSizes:
    """What a checkpoint takes once loaded, in the precision it would be served with."""

    dtype: str
    weight_bytes: int
    kv_dtype: str
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What can be said of a checkpoint without reading its weights. None means unknown."""

    path: str
    verdict: Verdict
    reason: str
    """Why, in a sentence; for a refusal, what would have to be different."""
    architecture: str = "unknown"
    family: str | None = None
    rope: str | None = None
    quantization: str | None = None
    """The declared weight format; None for plain weights."""
    has_chat_template: bool = False
    tool_format: str | None = None
    """How the model writes tool calls, such as hermes; none where its template renders no calls."""
    dtype: str | None = None
    """Of the weights as stored."""
    num_parameters: int | None = None
    weight_bytes: int | None = None
    """Bytes of all weights as stored."""
    kv_bytes_per_token: int | None = None
    """With K and V in `dtype`."""
    loaded: LoadedSizes | None = None
    """Where a memory plan was made: what it counts with."""
    max_context: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_supported(self) -> bool:
        """Whether the checkpoint runs, natively or by the adapter."""
        return self.verdict != "refused"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The report as lines to print; unknown values are left out."""
        rows = {
            "verdict": f"{self.verdict}: {self.reason}",
            "architecture": self.architecture,
            "family": self.family,
            "positions": self.rope,
            "quantization": self.quantization or "none",
            "chat template": "yes" if self.has_chat_template else "no",
            "tool calls": self.tool_format if self.has_chat_template else None,
            "stored dtype": self.dtype,
            "parameters": _count(self.num_parameters),
            "weights": self._weights(),
            "KV cache per token": self._kv(),
            "longest context": None if self.max_context is None else f"{self.max_context} tokens",
        }
        named = [f"{name + ':':<20}{value}" for name, value in rows.items() if value is not None]
        return named + [f"{'note:':<20}{note}" for note in self.notes]

    def _weights(self) -> str | None:
        sizes = [] if self.weight_bytes is None else [f"stored as {self.dtype}: {_bytes(self.weight_bytes)}"]
        if self.loaded is not None:
            sizes.append(f"loaded as {self.loaded.dtype}: {_bytes(self.loaded.weight_bytes)}")
        return ", ".join(sizes) or None

    def _kv(self) -> str | None:
        sizes = [] if self.kv_bytes_per_token is None else [f"as {self.dtype}: {_bytes(self.kv_bytes_per_token)}"]
        if self.loaded is not None:
            sizes.append(f"used as {self.loaded.kv_dtype}: {_bytes(self.loaded.kv_bytes_per_token)}")
        return ", ".join(sizes) or None


def check_model(path: str | Path, *, tool_format: Callable[[str], str] | None = None) -> CheckReport:
    """Judge the checkpoint in a directory, weights present or not.

    `tool_format` names the form of tool calls that a chat template renders (`text.template_traits.tool_format`); this
    package does not read templates itself.

    Raises:
        ConfigError: when the directory is no checkpoint at all.
    """
    checkpoint = Checkpoint(Path(path))
    if not checkpoint.path.is_dir():
        raise ConfigError(f"{path} is not a directory")
    try:
        report = _supported(checkpoint)
    except (UnsupportedModelError, WeightError) as error:
        report = _refused(checkpoint, str(error))
    try:
        template = chat_template_text(checkpoint)
    except WeightError as error:
        return dataclasses.replace(report, notes=(*report.notes, str(error)))
    named = tool_format(template) if tool_format is not None and template else None
    return dataclasses.replace(report, has_chat_template=bool(template), tool_format=named)


def _supported(checkpoint: Checkpoint) -> CheckReport:
    info = inspect_model(checkpoint.path, require_weights=False)
    is_native = info.implementation == "native"
    stored = sum(header.num_bytes for header in checkpoint.tensors.values()) if info.weight_files else None
    return CheckReport(
        path=str(checkpoint.path),
        verdict="supported" if is_native else "adapter",
        reason=_how(info) if is_native else "runs through transformers' model code with quire's paged attention",
        architecture=info.architecture,
        family=info.family,
        rope=info.rope,
        dtype=info.stored_dtype,
        num_parameters=info.num_parameters or None,
        weight_bytes=checkpoint.declared_weight_bytes if stored is None else stored,
        kv_bytes_per_token=info.kv_bytes_per_token(_ITEM_BYTES[info.stored_dtype]),
        max_context=info.max_position,
        notes=info.notes,
    )


def _how(info: ModelInfo) -> str:
    """How a native model runs, and what for where that is not to generate."""
    if info.pooling is None or info.pooling.generates:
        return "runs natively"
    return "runs natively, to embed" if info.pooling.task == "embed" else "runs natively, to classify and score"


def _refused(checkpoint: Checkpoint, reason: str) -> CheckReport:
    """A report that does without whatever cannot be read."""
    try:
        config = checkpoint.config
    except WeightError as error:
        return CheckReport(path=str(checkpoint.path), verdict="refused", reason=str(error))
    names = config.get("architectures")
    return CheckReport(
        path=str(checkpoint.path),
        verdict="refused",
        reason=reason,
        architecture=str(names[0])[:100] if isinstance(names, list) and names else "unknown",
        quantization=quantization(config),
    )


def chat_template_text(checkpoint: Checkpoint) -> str:
    """The checkpoint's chat template, empty when it has none.

    Looked for in chat_template.jinja, chat_template.json and tokenizer_config.json, in this order; of several named
    templates the one called default counts. Raises WeightError for a damaged file.
    """
    file = checkpoint.path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = checkpoint.optional_json(name).get("chat_template")
        if isinstance(value, list):
            named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
            value = named.get("default")
        if isinstance(value, str) and value:
            return value
    return ""


def _count(number: int | None) -> str | None:
    if number is None:
        return None
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} bytes"
