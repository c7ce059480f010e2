"""Which implementation runs a configuration: a native family, the generic adapter, or none for a named reason.

`register_architecture` is the plug-in point for models (S87): a module named in the `plugins` setting calls it when it
is imported. Torch-free; the native families are in `models/families.py`, the refusals in `models/refusals.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.base.errors import ConfigError, UnsupportedModelError
from quire.models.catalogue import adapter_support
from quire.models.encoder_families import ENCODERS
from quire.models.families import FAMILIES, FamilyEntry
from quire.models.refusals import adapter_refusal_reason, quantization_reason, refusal_reason


@dataclass(frozen=True, slots=True)
class Choice:
    """The implementation chosen for a configuration."""

    architecture: str
    entry: FamilyEntry | None
    """The native family; None means the generic adapter."""

    @property
    def family(self) -> str:
        """Name in the compatibility table."""
        return self.entry.family if self.entry is not None else f"{self.architecture} (transformers)"


def register_architecture(name: str, entry: FamilyEntry, *, replace: bool = False) -> None:
    """Add an implementation of the architecture `name`, as config.json's `architectures` spells it.

    `entry` names the module and class to build (a `CausalLM`) and the function that reads config.json; the module is
    imported only when such a model is loaded.

    Raises:
        ConfigError: when the architecture is taken and `replace` is not set.
    """
    if name in FAMILIES and not replace:
        raise ConfigError(f"architecture {name} is already run by {FAMILIES[name].module}; replace=True replaces it")
    FAMILIES[name] = entry


def choose_implementation(config: Mapping[str, Any]) -> Choice:
    """The implementation that runs this config.json.

    Raises:
        UnsupportedModelError: when none does, with the architecture and the reason.
    """
    architecture = architecture_of(config)
    entry = FAMILIES.get(architecture) or ENCODERS.get(architecture)
    # Who registers an architecture vouches for its layers; only the format of the weights is beyond it.
    reason = quantization_reason(config) if entry is not None else refusal_reason(config, architecture)
    if reason is not None:
        raise UnsupportedModelError(f"{architecture} is not supported: {reason}")
    if entry is not None:
        return Choice(architecture, entry)
    reason = adapter_refusal_reason(config) or adapter_support(architecture, str(config.get("model_type", ""))).reason
    if reason:
        native = ", ".join(sorted({known.family for known in (FAMILIES | ENCODERS).values()}))
        raise UnsupportedModelError(f"{architecture} is not supported: {reason}. Native families: {native}")
    return Choice(architecture, None)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture config.json names, a native one first where it names several; raises UnsupportedModelError."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UnsupportedModelError(
            f"config.json: architectures is {str(names)[:100]}; it must list a class such as LlamaForCausalLM"
        )
    return str(next((name for name in names if name in FAMILIES or name in ENCODERS), names[0]))
