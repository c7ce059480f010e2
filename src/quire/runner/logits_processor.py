"""The plug-in point of sampling: code that the operator registers may change logits before a token is drawn.

Only the operator can register one (through `plugins`), never a request. A processor says by a request's parameters
whether it wants to see its rows; while none does, it costs nothing.

    class NoDigits:
        def is_active(self, params): return True
        def apply(self, logits, rows): return logits.index_fill(1, DIGITS, float("-inf"))

    register_logits_processor("no-digits", lambda vocab_size: NoDigits())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quire.base.errors import ConfigError
from quire.base.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What a processor may know of a row whose next token is drawn."""

    params: SamplingParams
    token_ids: Tensor
    """[n] int32 on the device: prompt and output so far. Read only."""
    num_prompt_tokens: int


class LogitsProcessor(Protocol):
    """Changes logits of the rows it is active for."""

    def is_active(self, params: SamplingParams) -> bool:
        """Whether rows with these parameters are to be passed to `apply`; asked once, when a row starts."""

    def apply(self, logits: Tensor, rows: Sequence[RowContext]) -> Tensor:
        """The logits [R, V] float32 of the active rows, changed; runs after bias and masks, before penalties.

        A row's result must not depend on the other rows.
        """


ProcessorFactory = Callable[[int], LogitsProcessor]
"""Makes a processor for a vocabulary size, once per engine."""

_FACTORIES: dict[str, ProcessorFactory] = {}


def register_logits_processor(name: str, factory: ProcessorFactory) -> None:
    """Make a processor part of every engine built from now on; they run in the order of registration.

    Raises:
        ConfigError: when another processor has the name.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise ConfigError(f"a logits processor named {name!r} is registered already; choose another name")
    _FACTORIES[name] = factory


def unregister_logits_processor(name: str) -> None:
    """Undo `register_logits_processor` for engines built from now on; unknown names are ignored."""
    _FACTORIES.pop(name, None)


def build_logits_processors(vocab_size: int) -> list[LogitsProcessor]:
    """One of each registered processor."""
    return [factory(vocab_size) for factory in _FACTORIES.values()]
