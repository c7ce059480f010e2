"""Trying grammars out where they can do no harm: verdicts, time limits, crashes, and processes that go away."""

import os
import threading
import time

import pytest

from quire.base.errors import InvalidRequestError, OverloadedError
from quire.text import grammar_checker
from quire.text.grammar_checker import GrammarChecker
from quire.text.tokenizer import Tokenizer


@pytest.fixture
def checker(demo_path):
    tokenizer = Tokenizer.load(demo_path)
    checker = GrammarChecker(demo_path, num_rows=tokenizer.vocab_size, eos_token_ids=[tokenizer.eos_token_id])
    yield checker
    checker.close()


def pids(checker) -> list[int]:
    return [process._process.pid for process in checker._processes if process._process is not None]


def test_nothing_is_started_before_the_first_grammar_and_nothing_is_left_behind(checker):
    assert not checker._processes
    checker.check('start: "a"')
    (pid,) = pids(checker)
    os.kill(pid, 0)
    checker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_good_after_bad_and_bad_after_good(checker):
    """SEC-16: whatever one grammar does, the next one is judged by itself."""
    for _ in range(2):
        checker.check('start: "a"')
        with pytest.raises(InvalidRequestError, match="no_such_rule") as caught:
            checker.check("start: no_such_rule")
        assert (caught.value.param, caught.value.code) == ("structured_outputs", "invalid_grammar")
    assert len(checker._verdicts) == 2


def test_a_verdict_that_is_known_needs_no_process(checker):
    checker.check('start: "a"')
    checker.close()
    checker.check('start: "a"')
    assert not checker._processes


def test_a_grammar_that_takes_too_long_is_refused_and_the_next_one_is_not(checker, monkeypatch):
    """SEC-18: the process is killed, whatever the library is doing."""
    checker.check('start: "a"')
    (pid,) = pids(checker)
    monkeypatch.setattr(grammar_checker, "CHECK_SECONDS", 0.3)
    os.kill(pid, 19)  # SIGSTOP: as good as a compilation that never ends
    began = time.monotonic()
    with pytest.raises(InvalidRequestError, match="takes longer"):
        checker.check('start: "b"')
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    monkeypatch.undo()
    checker.check('start: "c"')
    assert pids(checker) != [pid]


def test_a_grammar_that_ends_its_process_is_refused_and_the_next_one_is_not(checker):
    checker.check('start: "a"')
    (pid,) = pids(checker)
    os.kill(pid, 19)  # SIGSTOP: it is at work when it ends
    threading.Timer(0.3, os.kill, (pid, 9)).start()
    with pytest.raises(InvalidRequestError, match="cannot be compiled"):
        checker.check('start: "b"')
    checker.check('start: "c"')


def test_a_process_that_ended_between_two_grammars_is_held_against_neither(checker):
    checker.check('start: "a"')
    (pid,) = pids(checker)
    os.kill(pid, 9)
    checker._processes[0]._process.wait()
    checker.check('start: "b"')
    assert pids(checker) != [pid]


def test_a_process_that_cannot_start_is_overload_and_no_verdict(checker, monkeypatch):
    monkeypatch.setattr(grammar_checker, "START_SECONDS", 0.0)
    with pytest.raises(OverloadedError, match="did not start"):
        checker.check('start: "a"')
    monkeypatch.undo()
    checker.check('start: "a"')


def test_grammars_nobody_waits_for_any_more_do_not_count_as_pending(checker):
    """A client that leaves cancels what has not begun: the places of 64 of them must not be lost for good."""
    checker.check('start: "a"')
    (pid,) = pids(checker)
    os.kill(pid, 19)  # SIGSTOP: the threads are busy, so what follows waits
    busy = [checker.submit(f'start: "busy{index}"') for index in range(grammar_checker.MAX_PROCESSES)]
    gone = [checker.submit(f'start: "gone{index}"') for index in range(8)]
    cancelled = [future.cancel() for future in gone]
    assert any(cancelled)
    os.kill(pid, 18)  # SIGCONT
    for future in [*busy, *(future for future in gone if not future.cancelled())]:
        future.result()
    deadline = time.monotonic() + 5
    while checker._num_pending and time.monotonic() < deadline:
        time.sleep(0.01)  # a future's callbacks run behind those who wait for it
    assert checker._num_pending == 0


@pytest.mark.parametrize("grammar", ["start: start", '{"grammars": [{"json_schema": {"$ref": "#"}}]}'])
def test_a_grammar_under_which_no_output_can_begin_is_refused_as_the_clients_mistake(checker, grammar):
    with pytest.raises(InvalidRequestError, match="allows no output"):
        checker.check(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        "start: /" + "(" * 60_000 + "/",
        "start: " + "(" * 60_000,
        "start: /(a{1,1000}){1,1000}b{1,1000}/",
        "start: /((a|b)*c){1,5000}(((d|e)*f){1,5000}){1,500}/",
        "start: start | start start",
        "start: " + " ".join(f"r{i}" for i in range(3000)) + "\n" + "\n".join(f'r{i}: "{i}"?' for i in range(3000)),
        '{"grammars": [{"json_schema": ' + '{"items":' * 5000 + "{}" + "}" * 5000 + "}]}",
    ],
)
def test_compile_bombs_get_an_answer_in_bounded_time(checker, grammar):
    """SEC-18: exploding expressions, deep nesting, left recursion: taken or refused, and the next one answered."""
    began = time.monotonic()
    try:
        checker.check(grammar)
    except InvalidRequestError as error:
        assert len(str(error)) < 1000
    assert time.monotonic() - began < 30
    checker.check('start: "fine"')


def test_grammars_are_tried_side_by_side(checker):
    """D19: two clients do not wait for one another."""
    threads = [threading.Thread(target=checker.check, args=(f'start: "{name}"',)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checker._verdicts) == 3 and len(checker._processes) <= grammar_checker.MAX_PROCESSES


def test_too_many_at_once_are_refused_as_overload(checker, monkeypatch):
    monkeypatch.setattr(grammar_checker, "MAX_PENDING", 0)
    with pytest.raises(OverloadedError):
        checker.submit('start: "a"')


def test_old_verdicts_are_given_up_when_their_text_exceeds_the_bound(checker, monkeypatch):
    """SEC-19."""
    monkeypatch.setattr(grammar_checker, "MAX_KEPT_BYTES", 200)
    for index in range(10):
        checker.check(f'start: "{index:050d}"')
    assert checker._kept_bytes == sum(map(len, checker._verdicts)) <= 200
