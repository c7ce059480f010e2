"""Recorded forward passes on the CPU kernels: a step is then one call into C++, without Python between its ops.

A recording serves every step of up to its capacity in tokens. A model whose forward pass holds an operation that the
kernels do not have cannot be recorded; it runs op by op, and the log says which operation it was.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from quire.attention.cpu import CpuPlan
from quire.attention.interface import AttentionPlan
from quire.ops.cpu.program import NotReplayableError, Recording, current_pool
from quire.runner.graphs import Forward

logger = logging.getLogger(__name__)

_SMALL = 64
"""Tokens of the recording for decode steps: small, so that its memory stays in the cache."""
_ALLOCATIONS = {"from_numpy"}
"""How a recording makes its own tensors."""
_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
_CHANGES = {"__setitem__", "__set__", *(f"__i{name}__" for name in _OPERATORS)}
"""Functions that write into a tensor they are given, besides those whose names end in one underscore."""
_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__", "__contains__"}
_READS |= {"__bool__", "__int__", "__float__", "__complex__", "__index__"}
"""Functions whose results depend on numbers and are no tensors."""


@dataclass(slots=True)
class _Recorded:
    """A recording with the arrays it reads its inputs from and the tensors it leaves its results in."""

    recording: Recording
    inputs: tuple[np.ndarray, ...]
    results: tuple[Tensor, ...]
    parts: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    """By number of tokens: that many rows of the results. Steps of one size follow each other, so views are kept."""
    given: tuple[Tensor, ...] = ()
    """The last step's inputs: often the next one's too, with other numbers in them."""
    sources: tuple[np.ndarray, ...] = ()
    """The same as arrays."""

    def take(self, given: tuple[Tensor, ...]) -> None:
        """Copy a step's inputs to where the recording reads them."""
        if len(given) != len(self.given) or not all(map(operator.is_, given, self.given)):
            self.given, self.sources = given, tuple(tensor.numpy() for tensor in given)
        for target, source in zip(self.inputs, self.sources, strict=True):
            target[: len(source)] = source

    def of(self, tokens: int) -> tuple[Tensor, ...]:
        """The results of a step of so many tokens."""
        if tokens not in self.parts:
            self.parts[tokens] = tuple(result[:tokens] for result in self.results)
        return self.parts[tokens]


class CpuGraphs:
    """Recordings by kind of pass and capacity, made when a step first needs one."""

    def __init__(self) -> None:
        self._recorded: dict[tuple[str, int], _Recorded] = {}
        self._refused: set[str] = set()

    @property
    def is_recording(self) -> bool:
        """Whether no kind of pass was found that cannot be replayed."""
        return not self._refused

    def run(self, kind: str, plan: AttentionPlan, *inputs: Tensor, forward: Forward) -> tuple[Tensor, ...]:
        """See `StepGraphs.run`."""
        pool = current_pool()
        if kind in self._refused or not isinstance(plan, CpuPlan) or pool.recording is not None:
            return forward(plan, *inputs)
        tokens = inputs[0].shape[0]
        capacity = max(_SMALL, 1 << (tokens - 1).bit_length())
        recorded = self._recorded.get((kind, capacity)) or self._record(kind, capacity, plan, inputs, forward)
        if recorded is None:
            return forward(plan, *inputs)
        recorded.take(inputs)
        recorded.recording.replay(pool, tokens, plan.record)
        return recorded.of(tokens)

    def _record(
        self, kind: str, capacity: int, plan: CpuPlan, inputs: Sequence[Tensor], forward: Forward
    ) -> _Recorded | None:
        pool, recording = current_pool(), Recording(capacity)
        own = [torch.zeros(capacity, dtype=tensor.dtype) for tensor in inputs]
        pool.start(recording)
        try:
            with _ForeignOps():
                results = forward(plan, *own)
            if not all(map(recording.owns, results)):
                raise NotReplayableError("what it returns is not the result of an op")
        except NotReplayableError as reason:
            self._refused.add(kind)
            logger.info("passes of the kind %s run op by op: %s", kind, reason)
            return None
        finally:
            pool.stop()
        recording.finish()
        arrays = tuple(tensor.numpy() for tensor in own)
        self._recorded[kind, capacity] = _Recorded(recording, arrays, results)
        return self._recorded[kind, capacity]


class _ForeignOps(TorchFunctionMode):
    """Stops at the first torch function that computes, allocates or reads numbers: a replay would leave it out.

    What only looks at a tensor's form, or makes a view of it, may stay. (A dispatch mode would see the same at a lower
    level, but entering one imports torch's compiler, which takes longer than loading a model.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, unless it changes or reads numbers; raises NotReplayableError where it made any."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in _ALLOCATIONS:
            return func(*args, **kwargs)
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or name in _CHANGES or name in _READS or kwargs.get("inplace") or kwargs.get("out") is not None:
            _refuse(name)
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError) as error:  # it met numbers that no op has computed yet
            _refuse(name, error)
        known = {_storage(x) for x in _tensors([*args, *kwargs.values()])}
        if any(_storage(x) not in known for x in _tensors([result])):
            _refuse(name)
        return result


def _refuse(name: str, cause: Exception | None = None) -> NoReturn:
    raise NotReplayableError(f"torch's {name} is no op of the CPU kernels") from cause


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
