"""Which implementation runs an op."""

from __future__ import annotations

import logging
from types import ModuleType, SimpleNamespace

import pytest
import torch

import quire.ops
import quire.ops.reference
from quire.ops.dispatch import choose, implementation


def module(name: str, **functions: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(functions)
    return made


def test_the_first_module_that_has_the_op_runs_it_without_a_word(caplog):
    fast, slow = module("fast", rope=print), module("slow", rope=repr)
    with caplog.at_level(logging.INFO):
        assert choose("rope", [fast, slow]) is print
    assert not caplog.records


def test_a_missing_fast_version_falls_back_with_one_log_line(caplog):
    fast, slow = module("fast"), module("slow", rope=repr)
    with caplog.at_level(logging.INFO):
        assert choose("rope", [fast, slow]) is repr
    assert [r.getMessage() for r in caplog.records] == ["op rope: no version in fast, running slow"]


def test_an_op_that_nobody_has_names_who_was_asked():
    with pytest.raises(AttributeError, match="op rope has no implementation in fast"):
        choose("rope", [module("fast")])


def test_the_choice_is_made_once_per_device_and_op():
    assert implementation("cpu", "softcap") is implementation("cpu", "softcap")


def test_every_op_of_the_table_has_a_reference_body():
    """But for those on packed weights, which exist for the CPU kernels alone."""
    table = [
        name
        for name, value in vars(quire.ops).items()
        if getattr(value, "__module__", "") == "quire.ops"
        and callable(value)
        and not isinstance(value, SimpleNamespace)
    ]
    assert len(table) >= 12
    plain = [name for name in table if not name.startswith("packed_")]
    assert [name for name in plain if not hasattr(quire.ops.reference, name)] == []


def test_the_table_runs_what_it_dispatches_to():
    x = torch.arange(4.0).reshape(2, 2)
    assert torch.equal(quire.ops.softcap(x, 2.0), implementation("cpu", "softcap")(x, 2.0))
