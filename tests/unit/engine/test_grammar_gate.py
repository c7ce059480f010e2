"""Requests held back while their grammars compile: who is let go when, and who is not waited for."""

from concurrent.futures import Future

import pytest

from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.engine.grammar_gate import GrammarGate, GrammarReady


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
