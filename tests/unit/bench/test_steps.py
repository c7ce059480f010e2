"""The clock between the parts of a decode step."""

from __future__ import annotations

import pytest

from quire.base.config import EngineConfig
from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError
from quire.bench.steps import StepLoad, describe, run_steps


@pytest.fixture(scope="module")
def costs(draft_path):
    load = StepLoad(rows=(1, 3), sampling=("greedy", "top_k"), prompt_tokens=5, steps=7)
    return run_steps(EngineConfig.from_options(model=draft_path), load)


def test_every_batch_is_measured_for_as_many_steps_as_asked(costs):
    assert [(one.sampling, one.rows, one.steps) for one in costs] == [
        ("greedy", 1, 7),
        ("greedy", 3, 7),
        ("top_k", 1, 7),
        ("top_k", 3, 7),
    ]


def test_the_parts_are_times_of_the_whole(costs):
    for one in costs:
        parts = (one.kernels, one.schedule, one.launch, one.commit, one.message)
        assert all(0 < seconds < one.whole for seconds in parts if are_usable() or seconds is not one.kernels)
        assert one.outside < one.whole


def test_the_table_has_a_line_per_batch(costs):
    assert len(describe(costs).splitlines()) == 2 + len(costs)


@pytest.mark.parametrize(
    "given",
    [
        {"rows": (2, 4), "constrained": 3},
        {"constrained": -1},
        {"rows": ()},
        {"rows": (0,)},
        {"steps": 0},
        {"sampling": ("beam",)},
        {"max_seconds": 0},
    ],
    ids=str,
)
def test_loads_that_measure_nothing_are_refused(given):
    with pytest.raises(ConfigError):
        StepLoad(**given)


@pytest.mark.parametrize(
    ("options", "load", "message"),
    [
        ({"max_num_seqs": 2}, {"rows": (3,)}, "raise it"),
        ({"max_model_len": 64}, {"rows": (1,), "steps": 100}, "exceed max_model_len"),
    ],
)
def test_what_the_engine_has_no_room_for_is_refused(draft_path, options, load, message):
    with pytest.raises(ConfigError, match=message):
        run_steps(EngineConfig.from_options(model=draft_path, **options), StepLoad(**load))


def test_constrained_rows_are_measured_beside_the_same_batch_without(draft_path):
    load = StepLoad(rows=(3,), sampling=("greedy", "top_p"), prompt_tokens=5, steps=6, constrained=2)
    costs = run_steps(EngineConfig.from_options(model=draft_path), load)
    assert [(one.sampling, one.rows, one.constrained, one.steps) for one in costs] == [
        ("greedy", 3, 0, 6),
        ("greedy", 3, 2, 6),
        ("top_p", 3, 0, 6),
        ("top_p", 3, 2, 6),
    ]
    assert "constrained" in describe(costs)
