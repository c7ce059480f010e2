"""The cold-start benchmark: phases from the server's own lines, all time accounted for, failures with their cause."""

from collections import deque

import pytest

from quire.base.errors import ConfigError, EngineDeadError
from quire.bench.report import as_json
from quire.bench.startup import _follow, _Phases, describe, run_startup

LINES = [
    "quire is loading quire-demo",
    "  load torch",
    "  load weights",
    "",
    "  load weights    0.10 s",
    "  KV pages    4 MiB",
    "",
    "quire-demo is ready at http://127.0.0.1:4242/v1 (context 4096 tokens, 64 requests at once)",
    "  curl http://127.0.0.1:4242/v1/chat/completions",
]


async def printed(lines):
    for line in lines:
        yield line


async def test_every_line_of_the_start_ends_a_phase():
    phases = _Phases()
    url = await _follow(printed(LINES), phases, deque())
    assert url == "http://127.0.0.1:4242"
    assert list(phases.seconds) == ["start the server process", "load torch", "load weights", "open the port"]
    assert sum(phases.seconds.values()) == pytest.approx(phases.last - phases.began)


async def test_a_server_that_ends_early_is_reported_with_its_last_lines():
    lines = deque(maxlen=20)
    with pytest.raises(EngineDeadError, match="port is taken"):
        await _follow(printed([LINES[0], "quire serve: error: port is taken"]), _Phases(), lines)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"max_seconds": 0}])
async def test_limits_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        await run_startup("quire-demo", **wrong)


async def test_a_model_that_is_not_there_is_the_cause(tmp_path):
    with pytest.raises(EngineDeadError, match=r"config\.json"):
        await run_startup(str(tmp_path), runs=1)


@pytest.mark.slow
async def test_a_real_start_is_measured_to_its_first_text():
    """S86: from the start of the process to the first text, and no time outside the phases."""
    result = await run_startup("quire-demo", runs=1)
    (run,) = result.runs
    assert {"start the server process", "load torch", "load weights", "open the port", "first text"} <= set(run.phases)
    assert sum(run.phases.values()) == pytest.approx(run.seconds)
    assert f"median: {result.median_seconds:.2f} s" in describe(result)
    assert '"median_seconds"' in as_json(result)
