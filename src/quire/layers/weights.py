"""From a module tree to the checkpoint tensors that fill it.

The module tree is named like a LLaMA checkpoint; a family whose checkpoint names differ declares a table of renamed
path components. This file knows names and slots; files and formats are the loader's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from quire.quant.interface import WeightSlot as WeightSlot


@runtime_checkable
class HasWeights(Protocol):
    """A module that owns weights."""

    def weight_slots(self, name: str) -> Iterable[WeightSlot]:
        """Slots with names relative to the parent of this module, which is called `name` there."""


@runtime_checkable
class HasAlternatives(Protocol):
    """A module whose weights some checkpoints store in another form as well."""

    def weight_alternatives(self, name: str) -> Iterable[WeightSlot]:
        """Slots of the other form; `fills` names the slots of the usual form, both relative to the parent."""


def collect_slots(root: nn.Module, renames: Mapping[str, str]) -> dict[str, WeightSlot]:
    """Every slot below `root` by checkpoint name.

    `renames` maps a component of a module path to the checkpoint's, or to "" where the checkpoint has no such level.
    """
    slots: dict[str, WeightSlot] = {}
    for path, module in root.named_modules():
        if not path or not isinstance(module, HasWeights):
            continue
        parents, _, name = path.rpartition(".")
        for slot in module.weight_slots(name):
            slot.name = _renamed(f"{parents}.{slot.name}", renames)
            assert slot.name not in slots, f"two places claim {slot.name}"
            slots[slot.name] = slot
    return slots


def collect_alternatives(root: nn.Module, renames: Mapping[str, str]) -> dict[str, WeightSlot]:
    """Tensors of another form below `root`, by the name they have where they occur: that of the module tree itself."""
    slots: dict[str, WeightSlot] = {}
    for path, module in root.named_modules():
        if not path or not isinstance(module, HasAlternatives):
            continue
        parents, _, name = path.rpartition(".")
        for slot in module.weight_alternatives(name):
            slot.name = f"{parents}.{slot.name}"
            slot.fills = tuple(_renamed(f"{parents}.{filled}", renames) for filled in slot.fills)
            slots[slot.name] = slot
    return slots


def _renamed(path: str, renames: Mapping[str, str]) -> str:
    components = [renames.get(part, part) for part in path.lstrip(".").split(".")]
    return ".".join(part for part in components if part)
