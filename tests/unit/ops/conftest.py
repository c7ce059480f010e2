"""The implementations of the op table under test. A new one joins by one entry in `IMPLEMENTATIONS`."""

from __future__ import annotations

import pytest
import torch

import quire.ops.cpu.table
import quire.ops.reference
from quire.base.cpu_kernels import are_usable

IMPLEMENTATIONS = {"reference": (quire.ops.reference, "cpu")}
if are_usable():
    IMPLEMENTATIONS["cpu kernels"] = (quire.ops.cpu.table, "cpu")
"""Name → module with the table's function names, and the device type it runs on."""

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Allowed error relative to the largest expected magnitude: a few roundings of the dtype."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """(module, device) of one implementation."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    """Every dtype a model may run in."""
    return request.param


@pytest.fixture
def op(implementation):
    """Look an op up in the implementation; one it lacks is not tested, because the reference runs in its place."""
    module, _ = implementation

    def find(name):
        if not hasattr(module, name):
            pytest.skip(f"{module.__name__} has no {name}")
        return getattr(module, name)

    return find


@pytest.fixture
def random(implementation, dtype):
    """Normal random tensors of the tested dtype on the tested device."""
    generator = torch.Generator().manual_seed(1)

    def make(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(implementation[1])

    return make


@pytest.fixture
def close(dtype):
    """Compare with a float64 expectation, as closely as the dtype allows."""

    def check(actual, expected, *, dtype=dtype):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        error = (actual.double().cpu() - expected).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(1.0, expected.abs().max().item())

    return check
