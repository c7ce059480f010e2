"""Random histories of the step loop on a real model: everyone ends once, says what it would alone, leaves nothing.

The scheduler has its own histories on a fake device (tests/unit/scheduler). Here the loop itself is driven through its
inbox, plain and overlapped, while steps fail to launch or fail to finish, clocks jump and messages come twice.
"""

import random
from collections import Counter

import pytest

from quire import EngineConfig, SamplingParams
from quire.base.errors import StepError
from quire.base.outputs import FinishReason
from quire.base.request import EngineRequest
from quire.cache.manager import KVCacheManager
from quire.engine.build import build_core
from quire.engine.core import EngineCore
from quire.engine.messages import AbortMessage, AddMessage, StopMessage
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.intake import sample_seed
from quire.scheduler.scheduler import Scheduler

NUM_PAGES, PAGE_SIZE, MAX_ROWS = 11, 8, 4
STEMS = [list(range(40, 100)), list(range(200, 260))]


class FailingWait:
    """A step that was launched and whose answer never comes."""

    def wait(self):
        raise StepError("injected while waiting")


class FaultyRunner:
    """The real runner, whose next step can be made to fail."""

    def __init__(self, runner):
        self._runner = runner
        self.failure = None

    def launch(self, work):
        failure, self.failure = self.failure, None
        if failure == "launch":
            raise StepError("injected at launch")
        pending = self._runner.launch(work)
        return FailingWait() if failure == "wait" else pending

    def poison(self, pages):
        self._runner.poison(pages)


class Engine:
    """An engine core on the shared runner with a clock of its own, and the books a front end would keep."""

    def __init__(self, runner, eos, *, overlap, **limits):
        self.now = 100.0
        values = {"max_num_seqs": MAX_ROWS, "max_num_batched_tokens": 32, "max_prefill_tokens_mixed": 8}
        self.scheduler = Scheduler(
            SchedulerLimits(**(values | {"max_model_len": 96} | limits)),
            KVCacheManager(NUM_PAGES, PAGE_SIZE, debug=True),
            clock=lambda: self.now,
            eos_token_ids=eos,
        )
        self.runner = FaultyRunner(runner)
        self.core = EngineCore(self.scheduler, self.runner, overlap=overlap, debug=True)
        self.requests = {}
        self.open = []
        self.outputs = {}

    def send(self, message):
        self.core.inbox.put(message)

    def add(self, request):
        self.requests[request.request_id] = request
        self.open += [(request.request_id, index) for index in range(request.params.n)]
        self.send(AddMessage([request]))

    def step(self):
        self.now += 0.01
        for output in self.core.advance():
            key = (output.request_id, output.index)
            assert key in self.open, f"{key}: an output after the last: {output}"
            self.outputs.setdefault(key, []).append(output)
            if output.finish_reason is not None:
                self.open.remove(key)

    def run(self):
        for _ in range(3000):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"does not end: {self.core.dump()}")

    def tokens(self, key):
        return [token for output in self.outputs[key] for token in output.token_ids]

    def check_nothing_is_left(self):
        scheduler, stats = self.scheduler, self.core.stats()
        assert self.open == []
        assert (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)
        assert stats.num_free_pages + stats.num_cached_pages == NUM_PAGES
        assert sorted(scheduler.roster._free_rows) == list(range(MAX_ROWS))
        left = [scheduler.cache.tables, scheduler.cache._chains, scheduler.cache._sources, scheduler.roster.parents]
        left += [scheduler.collector._prompt_logprobs, scheduler.planner._lost, scheduler._launched, self.core._ended]
        assert not any(left), left
        assert self.core.advance() == []
        scheduler.check()


@pytest.fixture(scope="module")
def parts(draft_path):
    """The built-in small model's runner and end-of-sequence ids; rows and pages are shared by all engines below."""
    config = EngineConfig.from_options(model=draft_path, max_model_len=96, page_size=PAGE_SIZE, max_num_seqs=MAX_ROWS)
    core, info = build_core(config)
    assert core.scheduler.cache.num_pages >= NUM_PAGES
    return core.runner, info.eos_token_ids


@pytest.fixture(scope="module")
def alone(parts):
    """What one sample says with the machine to itself, remembered."""
    said = {}

    def run(request, index):
        params, seed = request.params, sample_seed(request.seed, index)
        prompt, stops = tuple(request.prompt_token_ids), tuple(params.stop_token_ids)
        key = (prompt, stops, params.temperature, params.ignore_eos, request.max_tokens, seed)
        if key not in said:
            engine = Engine(*parts, overlap=False)
            engine.add(make_request("solo", request.prompt_token_ids, seed=seed, params=params, n=1))
            engine.run()
            said[key] = engine.tokens(("solo", 0))
        return said[key]

    return run


def make_request(name, prompt, *, seed, params, n, deadline=None, priority=0, arrival=100.0):
    one = params.clone()
    one.n = n
    return EngineRequest(
        request_id=name,
        prompt_token_ids=list(prompt),
        params=one,
        max_tokens=one.max_tokens,
        seed=seed,
        arrival_time=arrival,
        deadline=deadline,
        priority=priority,
    )


def random_request(rng, name, now):
    params = SamplingParams(
        temperature=rng.choice([0.0, 1.0]),
        max_tokens=rng.choice([1, 2, 7, 40]),
        ignore_eos=rng.random() < 0.7,
        stop_token_ids=rng.choice([[], list(range(0, 2000, 5))]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
        logprobs=rng.choice([None, 1]),
    )
    return make_request(
        name,
        rng.choice(STEMS)[: rng.choice([1, 8, 15, 16, 17, 40])],
        seed=rng.choice([1, 2]),
        params=params,
        n=rng.choice([1, 1, 2, 3]),
        deadline=now + rng.choice([0.03, 0.2, 50.0]) if rng.random() < 0.2 else None,
        priority=rng.choice([0, 0, 1]),
        arrival=now,
    )


def play(engine, rng, num_operations):
    """Random messages, failures and clock jumps between steps; returns which happened."""
    events = Counter()
    for number in range(num_operations):
        draw = rng.random()
        live = rng.choice(engine.open) if engine.open else ("nobody", 0)
        if draw < 0.3 and len(engine.open) < 10:
            request = random_request(rng, f"r{number}", engine.now)
            engine.add(request)
            if rng.random() < 0.1:
                engine.send(AddMessage([request]))
                events["duplicate"] += 1
        elif draw < 0.36:
            engine.send(AbortMessage([live[0], live[0], "nobody"]))
            events["abort"] += 1
        elif draw < 0.42:
            engine.send(AbortMessage(samples=[live, live, ("nobody", 7)]))
            events["abort of a sample"] += 1
        elif draw < 0.45:
            engine.runner.failure = rng.choice(["launch", "wait"])
            events["failure"] += 1
        elif draw < 0.46:
            engine.now += rng.choice([30.0, -0.5])
            events["clock jump"] += 1
        else:
            engine.step()
    engine.run()
    stats = engine.core.stats()
    return events + Counter({"preemption": stats.preemptions, "copy": stats.page_copies, "hit": stats.prefix_hits})


def verify(engine, alone):
    """Every sample ended once; what it said is what it says alone, or the beginning of it."""
    reasons = Counter()
    for name, request in engine.requests.items():
        for index in range(request.params.n):
            outputs, expected = engine.outputs[name, index], alone(request, index)
            found, reason = engine.tokens((name, index)), outputs[-1].finish_reason
            reasons[outputs[-1].error_kind or reason.value] += 1
            assert [output.finish_reason is None for output in outputs] == [True] * (len(outputs) - 1) + [False]
            complete = reason in (FinishReason.STOP, FinishReason.LENGTH)
            assert found == (expected if complete else expected[: len(found)]), (name, index, reason)
            if request.params.prompt_logprobs is not None and index == 0 and found:
                (entries,) = [o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None]
                assert [entry.token_ids[0] for entry in entries] == request.prompt_token_ids[1:]
            if request.params.logprobs is not None:
                assert [e.token_ids[0] for o in outputs for e in o.logprobs or []] == found
    return reasons


def play_many(parts, alone, seeds, *, overlap, least):
    """Histories of every seed, each verified; every kind of event and end occurred at least `least` times."""
    seen, reasons = Counter(), Counter()
    for seed in seeds:
        engine = Engine(*parts, overlap=overlap)
        seen.update(play(engine, random.Random(seed), 100))
        engine.check_nothing_is_left()
        reasons.update(verify(engine, alone))
    for event in ("abort", "abort of a sample", "failure", "duplicate", "clock jump", "copy", "hit"):
        assert seen[event] >= least, seen
    assert seen["preemption"] >= least - 2, seen  # rarer
    for reason in ("stop", "length", "abort", "StepError", "DeadlineExceededError"):
        assert reasons[reason] >= least, reasons


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_random_histories_end_everyone_once_and_leave_nothing(parts, alone, overlap):
    """REL-1 REL-5 REL-6 REL-17 REL-20: aborts, deadlines, failures, clock jumps, doubled messages at every moment."""
    play_many(parts, alone, range(6), overlap=overlap, least=2)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_many_random_histories_end_everyone_once_and_leave_nothing(parts, alone, overlap):
    """REL-1 REL-5 REL-6 REL-17 REL-20: the same, for longer."""
    play_many(parts, alone, range(100, 130), overlap=overlap, least=10)


PHASES = ["queued", "prefilling", "first token", "decoding", "preempted", "held back for its sibling"]


def reach(engine, phase):
    """Bring a request into the phase; returns its id."""
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    if phase == "queued":
        for i in range(MAX_ROWS):
            engine.add(make_request(f"other{i}", STEMS[1][:9], seed=1, params=params, n=1))
    if phase == "preempted":
        for i in range(2):
            engine.add(make_request(f"other{i}", STEMS[1][:20], seed=i, params=params, n=1))
    engine.add(make_request("it", STEMS[0][:40], seed=1, params=params, n=3 if "sibling" in phase else 1))

    def is_there():
        request = next((r for r in engine.scheduler.roster if r.request_id == "it"), None)
        if request is None:
            return False
        return {
            "queued": request.row is None,
            "prefilling": 0 < request.num_computed_tokens < 40,
            "first token": request.num_output_tokens == 1,
            "decoding": request.num_output_tokens > 5,
            "preempted": request.metrics.num_preemptions > 0 and request.row is None,
            "held back for its sibling": request.row is not None and request.num_output_tokens == 0,
        }[phase]

    for _ in range(200):
        engine.step()
        if is_there():
            return "it"
    raise AssertionError(f"never {phase}: {engine.core.dump()}")


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("end", ["abort", "deadline", "failure at launch", "failure while waiting"])
def test_a_request_can_end_in_every_phase(parts, alone, overlap, phase, end):
    """REL-1 REL-19 REL-20: queued, prefilling, decoding, preempted or held back, it ends and gives everything back."""
    limits = {"max_num_batched_tokens": 16} if phase in ("prefilling", "held back for its sibling") else {}
    engine = Engine(*parts, overlap=overlap, **limits)
    name = reach(engine, phase)
    request = next(r for r in engine.scheduler.roster if r.request_id == name)
    if end == "abort":
        engine.send(AbortMessage([name]))
    elif end == "deadline":
        engine.scheduler.roster._deadlines.append((engine.now, (0.0, 0, 0), request))
    else:
        engine.runner.failure = "launch" if "launch" in end else "wait"
    engine.step()
    if end in ("abort", "deadline"):
        assert engine.outputs[name, 0][-1].finish_reason is not None, "it did not end within a step"
    engine.run()
    engine.check_nothing_is_left()
    verify(engine, alone)


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_a_stop_message_ends_the_loop_with_requests_open(parts, overlap):
    """REL-7: told to end, the loop ends after the step it is in."""
    engine = Engine(*parts, overlap=overlap)
    engine.add(make_request("it", STEMS[0][:20], seed=1, params=SamplingParams(max_tokens=30, ignore_eos=True), n=2))
    steps = []

    def deliver(outputs, stats):
        steps.append(stats.step)
        assert stats.num_running, "nothing runs: the loop would sleep for ever"
        if len(steps) == 5:
            engine.send(StopMessage())

    engine.core.run(deliver)
    assert 5 <= len(steps) <= 7


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
def test_every_turn_of_the_loop_does_something_until_it_sleeps(parts, overlap):
    """REL-22: there is no state with work in which the loop turns and nothing runs, ends or arrives."""
    for seed in range(6):
        engine = Engine(*parts, overlap=overlap)
        rng = random.Random(seed)
        for number in range(8):
            engine.add(random_request(rng, f"r{number}", engine.now))
        idle = 0
        while engine.core.has_work:
            before = engine.core.stats().step, len(engine.open), engine.core._in_flight
            engine.step()
            idle = idle + 1 if before == (engine.core.stats().step, len(engine.open), engine.core._in_flight) else 0
            assert idle < 1, engine.core.dump()


def test_the_state_for_a_debugger_says_who_is_where_and_no_prompt(parts, caplog):
    """SEC-30: what is logged when the loop fails names requests, rows and pages, and no token."""
    engine = Engine(*parts, overlap=True)
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    engine.add(make_request("it", [471] * 20, seed=1, params=params, n=2))
    engine.step()
    engine.runner.launch = lambda work: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.core.run(lambda outputs, stats: None)
    (text,) = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert "'request_id': 'it'" in text
    assert "471" not in text
    assert [entry["status"] for entry in engine.core.dump()["scheduler"]["requests"]] == ["running", "waiting"]
