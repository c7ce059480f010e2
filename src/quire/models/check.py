"""The support report of a checkpoint: will it run, how, and what does it cost in memory (S125). Torch-free.

A refusal is a result here, not an error. Printing and exit status are the command line's business.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quire.base.errors import ConfigError, UnsupportedModelError, WeightError
from quire.models.checkpoint import Checkpoint
from quire.models.inspect import inspect_model
from quire.models.refusals import quantization

Verdict = Literal["supported", "adapter", "refused"]
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


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
    tool_format: str = "none"
    """hermes, llama3-json, mistral, pythonic or none, told from the chat template."""
    dtype: str | None = None
    num_parameters: int | None = None
    weight_bytes: int | None = None
    """Bytes of all weights as stored."""
    kv_bytes_per_token: int | None = None
    """With K and V in `dtype`."""
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
            "tool calls": self.tool_format,
            "stored dtype": self.dtype,
            "parameters": _count(self.num_parameters),
            "weights": _bytes(self.weight_bytes),
            "KV cache per token": _bytes(self.kv_bytes_per_token),
            "longest context": None if self.max_context is None else f"{self.max_context} tokens",
        }
        named = [f"{name + ':':<20}{value}" for name, value in rows.items() if value is not None]
        return named + [f"{'note:':<20}{note}" for note in self.notes]


def check_model(path: str | Path) -> CheckReport:
    """Judge the checkpoint in a directory, weights present or not.

    Raises:
        ConfigError: when the directory is no checkpoint at all.
    """
    checkpoint = Checkpoint(Path(path))
    if not checkpoint.path.is_dir():
        raise ConfigError(f"{path} is not a directory")
    try:
        return _supported(checkpoint)
    except (UnsupportedModelError, WeightError) as error:
        return _refused(checkpoint, str(error))


def _supported(checkpoint: Checkpoint) -> CheckReport:
    info = inspect_model(checkpoint.path, require_weights=False)
    is_native = info.implementation == "native"
    template = chat_template_text(checkpoint)
    stored = sum(header.num_bytes for header in checkpoint.tensors.values()) if info.weight_files else None
    return CheckReport(
        path=str(checkpoint.path),
        verdict="supported" if is_native else "adapter",
        reason="runs natively" if is_native else "runs through transformers' model code with quire's paged attention",
        architecture=info.architecture,
        family=info.family,
        rope=info.rope,
        has_chat_template=bool(template),
        tool_format=tool_format(template),
        dtype=info.stored_dtype,
        num_parameters=info.num_parameters or None,
        weight_bytes=checkpoint.declared_weight_bytes if stored is None else stored,
        kv_bytes_per_token=info.kv_bytes_per_token(_ITEM_BYTES[info.stored_dtype]),
        max_context=info.max_position,
        notes=info.notes,
    )


def _refused(checkpoint: Checkpoint, reason: str) -> CheckReport:
    """A report that does without whatever cannot be read."""
    try:
        config = checkpoint.config
        template = chat_template_text(checkpoint)
    except WeightError as error:
        return CheckReport(path=str(checkpoint.path), verdict="refused", reason=str(error))
    names = config.get("architectures")
    return CheckReport(
        path=str(checkpoint.path),
        verdict="refused",
        reason=reason,
        architecture=str(names[0])[:100] if isinstance(names, list) and names else "unknown",
        quantization=quantization(config),
        has_chat_template=bool(template),
        tool_format=tool_format(template),
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


_TOOL_MARKS = (
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("pythonic", ("<|python_start|>", "<|tool_call_start|>")),
    ("llama3-json", ("<|python_tag|>", "Environment: ipython")),
)
"""Marks a template writes around a call it renders, most telling first."""


def tool_format(template: str) -> str:
    """The form of tool calls a chat template renders: hermes, mistral, pythonic, llama3-json or none."""
    if "<function=" in template:  # XML-like calls (Qwen3-Coder), for which there is no parser
        return "none"
    for name, marks in _TOOL_MARKS:
        if any(mark in template for mark in marks):
            return name
    return "none"


def _count(number: int | None) -> str | None:
    if number is None:
        return None
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _bytes(number: int | None) -> str | None:
    if number is None:
        return None
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} bytes"
