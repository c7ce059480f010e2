"""The proof of the tool: a faultless server passes every line, and each planted fault fails the line that it breaks."""

import pytest
from expected import MESSAGES
from fake_faults import EVERY_FAULT
from fake_server import KEY, FakeServer

from quire.conformance.registry import choose, every_check
from quire.conformance.runner import run
from quire.conformance.target import Options

SLOW = {"4r", "40", "h3"}


async def examine(server, *lines, **more):
    settings = {"api_key": KEY, "timeout": 20.0, "settle_seconds": 1.0, "is_slow": True, "concurrency": 12} | more
    options = Options(server.url, **settings)
    report = await run(options, choose(lines), max_seconds=50, say=lambda _: None)
    return {result.line: result for result in report.results}


async def test_a_server_without_faults_passes_every_line():
    """S52: nothing of the checklist is failed or skipped; lines that want a loaded server have a test of their own."""
    async with FakeServer() as server:
        results = await examine(server, is_slow=False)
    assert {line: one.detail for line, one in results.items() if one.status != "passed" and line not in SLOW} == {}
    assert {line for line, one in results.items() if one.status == "skipped"} == SLOW


async def test_a_loaded_server_without_faults_passes_the_slow_lines():
    async with FakeServer(prefill_seconds=2.0, keep_alive=1.0) as server:
        results = await examine(server, "4r", "h3", keep_alive_seconds=1.5)
    async with FakeServer(max_running=4) as server:
        results |= await examine(server, "40")
    assert {line: one.detail for line, one in results.items() if one.status != "passed"} == {}


NEEDS = {"4r": {"prefill_seconds": 1.0}, "5": {"fail_after": 10**6}, "40": {"max_running": 4}}
"""How a server must be for a line to be judged."""


@pytest.mark.parametrize("fault", sorted(EVERY_FAULT))
async def test_a_planted_fault_fails_its_line(fault):
    line = fault.partition(":")[0]
    more = NEEDS.get(line, {})
    async with FakeServer(fault, **more) as server:
        result = (await examine(server, line, keep_alive_seconds=0.3))[line]
    assert result.status == "failed", result.detail
    assert MESSAGES[fault] in result.detail


def test_every_line_has_a_fault_that_fails_it():
    assert set(MESSAGES) == EVERY_FAULT
    assert {check.line for _, check in every_check()} == {fault.partition(":")[0] for fault in EVERY_FAULT}
