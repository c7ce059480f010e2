"""Pools of every instruction set, and memory with guards around it: what is read or written past an end shows."""

from __future__ import annotations

import math

import pytest
import torch

from quire.base.cpu_kernels import instruction_sets
from quire.ops.cpu import table
from quire.ops.cpu.program import Pool, using

GUARD = 96
"""Poisoned numbers before and after each tensor: more than the widest load of any instruction set."""
_POISON = {torch.float32: math.nan, torch.float64: math.nan, torch.int64: -(1 << 40)}


class Memory:
    """Tensors inside poisoned buffers: NaN for numbers, wild indices for ids."""

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Tensor, int, int]] = []

    def filled(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of `source` with poison around it."""
        result = self.empty(source.shape, source.dtype)
        result.copy_(source)
        return result

    def fused(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of `source` [T, ...] whose rows lie apart with poison between them, as parts of a fused product do."""
        row = source[0].numel() if len(source) else math.prod(source.shape[1:])
        whole = self.empty((len(source), row + 2 * 7), source.dtype)
        part = whole[:, 7 : 7 + row].unflatten(1, source.shape[1:]) if source.dim() > 2 else whole[:, 7 : 7 + row]
        part.copy_(source)
        return part

    def empty(self, shape, dtype=torch.float32) -> torch.Tensor:
        """Poisoned from end to end; the signature is that of `program.empty`."""
        count = math.prod(shape)
        whole = torch.full((count + 2 * GUARD,), _POISON[dtype], dtype=dtype)
        self._kept.append((whole, GUARD, GUARD + count))
        return whole[GUARD : GUARD + count].view(tuple(shape))

    def check(self) -> None:
        """Raise AssertionError where something was written outside a tensor."""
        for whole, start, stop in self._kept:
            outside = torch.cat((whole[:start], whole[stop:]))
            untouched = outside.isnan() if outside.is_floating_point() else outside == _POISON[outside.dtype]
            assert untouched.all(), "an op wrote outside its result"


@pytest.fixture(scope="session")
def pool_of():
    """The pool of an instruction set with so many threads, made once."""
    pools = {}

    def find(instruction_set, threads=1):
        key = instruction_set, threads
        if key not in pools:
            pools[key] = Pool(threads, instruction_set)
        return pools[key]

    return find


@pytest.fixture(params=instruction_sets() or ("none",))
def isa(request):
    """Every instruction set that this machine can run."""
    if request.param == "none":
        pytest.skip("the kernels are not built")
    return request.param


@pytest.fixture(params=[1, 2], ids=lambda n: f"{n}t")
def pool(request, isa, pool_of):
    """A pool in use: ops of the test run on it."""
    with using(pool_of(isa, request.param)) as chosen:
        yield chosen


@pytest.fixture
def memory(monkeypatch):
    """Guarded memory, in which ops put their results as well; checked at the end of the test."""
    result = Memory()
    monkeypatch.setattr(table, "empty", result.empty)
    yield result
    result.check()


@pytest.fixture
def random():
    """Normal random float32 numbers, the same in every run."""
    generator = torch.Generator().manual_seed(4)

    def make(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    return make


@pytest.fixture
def close():
    """Compare, relative to the largest expected magnitude, at least 1."""

    def check(actual, expected, tolerance=3e-6):
        assert actual.shape == expected.shape
        if actual.numel():
            error = (actual.double() - expected.double()).abs().max().item()
            assert error <= tolerance * max(1.0, expected.abs().max().item()), error

    return check
