"""Requests held back while their grammars compile: who is let go when, and who is not waited for."""

import dataclasses
import threading
import time
from concurrent.futures import Future

import pytest

from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.cache.manager import KVCacheManager
from quire.engine.core import EngineCore
from quire.engine.grammar_gate import GrammarGate, GrammarReady
from quire.engine.messages import AddMessage, StopMessage
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.scheduler import Scheduler


class Compiler:
    """Compilations that end when the test says so."""

    def __init__(self) -> None:
        self.futures = []

    def compile(self, grammar):
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def compiler():
    return Compiler()


def request(grammar="g"):
    return EngineRequest(
        request_id="r",
        prompt_token_ids=[1],
        params=SamplingParams(),
        max_tokens=1,
        seed=0,
        arrival_time=0.0,
        grammar=grammar,
    )


def test_a_request_is_let_go_once_its_grammar_is_done(compiler):
    ready, added = [], []
    gate = GrammarGate(compiler, ready.append)
    gate.hold(request())
    assert len(gate) == 1 and not ready
    compiler.futures[0].set_result("constraint")
    assert ready == [GrammarReady("r")]
    gate.release("r", lambda *pair: added.append(pair) or [])
    assert [constraint for _, constraint in added] == ["constraint"] and len(gate) == 0


def test_the_grammar_of_an_aborted_request_lets_no_later_one_of_its_id_go(compiler):
    """The step loop would wait for the later one's grammar, and everybody's tokens with it."""
    gate = GrammarGate(compiler, lambda ready: None)
    gate.hold(request("first"))
    assert [output.finish_reason for output in gate.abort(["r"])] == ["abort"]
    gate.hold(request("second"))
    first, second = compiler.futures
    first.set_result("first")
    second.exception = lambda timeout=None: pytest.fail("waited for a grammar that is not done")
    assert gate.release("r", lambda *pair: pytest.fail("let go")) == [] and len(gate) == 1
    del second.exception
    second.set_result("second")
    added = []
    gate.release("r", lambda *pair: added.append(pair[1]) or [])
    assert added == ["second"]


def test_a_deadline_holds_while_a_grammar_compiles(compiler):
    """REL-19: nobody waits longer than he said, and the grammar that comes too late lets nothing go."""
    now = [10.0]
    gate = GrammarGate(compiler, lambda ready: None, clock=lambda: now[0])
    assert gate.seconds_left() is None and gate.expire() == []
    gate.hold(request())
    assert gate.seconds_left() is None
    gate.hold(dataclasses.replace(request(), request_id="hurried", deadline=12.0))
    assert gate.seconds_left() == 2.0 and gate.expire() == []
    now[0] = 12.5
    assert gate.seconds_left() == 0.0
    (output,) = gate.expire()
    assert (output.request_id, output.finish_reason, output.error_kind) == ("hurried", "error", "DeadlineExceededError")
    assert len(gate) == 1 and gate.seconds_left() is None
    compiler.futures[1].set_result("late")
    assert gate.release("hurried", lambda *pair: pytest.fail("let go")) == []


@pytest.mark.parametrize("overlap", [False, True])
def test_the_step_loop_wakes_for_a_deadline_while_it_only_waits_for_grammars(compiler, overlap):
    """REL-19: with nothing to compute the loop sleeps until the first deadline, and then says so."""
    limits = SchedulerLimits(
        max_num_seqs=2, max_num_batched_tokens=16, max_prefill_tokens_mixed=16, max_model_len=32, policy="fcfs"
    )
    scheduler = Scheduler(limits, KVCacheManager(8, 16), clock=time.monotonic)
    core = EngineCore(scheduler, runner=None, constraints=compiler, overlap=overlap)
    late = dataclasses.replace(request(), deadline=time.monotonic() + 0.2)
    core.inbox.put(AddMessage([late]))
    delivered = []

    def deliver(outputs, stats):
        delivered.extend(outputs)
        core.inbox.put(StopMessage())

    loop = threading.Thread(target=core.run, args=(deliver,))
    loop.start()
    loop.join(10)
    assert not loop.is_alive() and [output.error_kind for output in delivered] == ["DeadlineExceededError"]
