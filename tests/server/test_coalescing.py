"""Identical requests in flight share one generation: each gets all of it, in its own form, and leaves by itself."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest

from quire import AsyncEngine, EngineConfig, SamplingParams
from quire.base.errors import DeadlineExceededError, InvalidRequestError, OverloadedError, StepError
from quire.base.outputs import CompletionOutput, Logprob, RequestOutput
from quire.server import shared_run
from quire.server.coalescing import Coalescer
from quire.server.hooks import AnswerFilter, Hook, Stop
from quire.server.shared_run import SharedRun

CHAT, PLAIN, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GREEDY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}


class Gate:
    """Lets the engine take so many steps."""

    def __init__(self, engine: Any, steps: int = 0) -> None:
        self.steps = steps
        engine.gate = self.wait

    async def wait(self, step: int) -> None:
        while step >= self.steps:
            await asyncio.sleep(0.001)


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def text_of(answer: httpx.Response) -> str:
    """The text of an answer to chat, streamed or not."""
    if answer.headers["content-type"] == "application/json":
        return answer.json()["choices"][0]["message"]["content"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])


@pytest.fixture
def shared(engine, make_http):
    return make_http(engine, coalesce_requests=True)


async def test_identical_requests_cost_one_generation_and_each_has_its_own_answer(shared, engine) -> None:
    """N13: streamed and not, who comes late from the beginning; ids and forms are their own."""
    gate = Gate(engine, steps=5)
    forms: list[dict[str, Any]] = [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "somebody"},
    ]
    tasks = []
    for fields in forms:
        tasks.append(asyncio.create_task(shared.post(CHAT, json=GREEDY | fields)))
        await asyncio.sleep(0.02)
        gate.steps += 2
    gate.steps = 1000
    answers = await asyncio.gather(*tasks)
    assert len(engine.submitted) == 1 and not engine.open and not engine.aborted
    assert {text_of(answer) for answer in answers} == {engine.reply}
    assert len({json.loads(a.text.splitlines()[0].removeprefix("data: "))["id"] for a in answers}) == len(forms)
    usages = [
        answers[0].json()["usage"],
        answers[3].json()["usage"],
        json.loads(answers[2].text.split("data: ")[-2])["usage"],
    ]
    assert usages[0] == usages[1] == usages[2] and usages[0]["completion_tokens"] > 10
    text = (await shared.get("/metrics")).text
    assert "quire:coalesced_requests_total 3.0" in text
    assert f'quire:tenant_generation_tokens_total{{tenant="default"}} {4.0 * usages[0]["completion_tokens"]}' in text


@pytest.mark.parametrize(
    ("one", "other", "num_runs"),
    [
        ({"temperature": 0}, {"temperature": 0}, 1),
        ({"temperature": 1, "seed": 3}, {"temperature": 1, "seed": 3}, 1),
        ({"temperature": 1, "seed": 3}, {"temperature": 1, "seed": 4}, 2),
        ({"temperature": 1}, {"temperature": 1}, 2),
        ({"n": 2}, {"n": 3}, 2),
        ({"cache_salt": "a"}, {"cache_salt": "b"}, 2),
        ({"priority": 1}, {}, 2),
        ({"logprobs": True}, {}, 2),
        ({"prompt_logprobs": 1}, {"prompt_logprobs": 1}, 2),
        ({"max_tokens": 5}, {"max_tokens": 6}, 2),
    ],
)
async def test_only_requests_that_must_get_the_same_share(shared, engine, one, other, num_runs) -> None:
    gate = Gate(engine)
    tasks = [asyncio.create_task(shared.post(CHAT, json=GREEDY | fields)) for fields in (one, other)]
    await eventually(lambda: len(engine.submitted) == num_runs)
    await asyncio.sleep(0.02)
    gate.steps = 1000
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200, 200] and len(engine.submitted) == num_runs


async def test_tenants_do_not_share_and_nobody_does_unasked(engine, make_http, tmp_path) -> None:
    """N13: the time of an answer tells nothing of what others ask."""
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: [{name: a, keys: [ka]}, {name: b, keys: [kb]}]", encoding="utf-8")
    for options, headers, num_runs in (
        ({"tenants_file": str(path), "coalesce_requests": True}, ("ka", "kb", "ka"), 2),
        ({}, ("k", "k"), 2),
    ):
        engine.submitted.clear()
        gate = Gate(engine)
        http = make_http(engine, **options)
        tasks = [asyncio.create_task(http.post(CHAT, json=GREEDY, headers={"x-api-key": key})) for key in headers]
        await eventually(lambda expected=num_runs: len(engine.submitted) == expected)
        gate.steps = 1000
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert len(engine.submitted) == num_runs


async def test_each_keeps_its_own_deadline(shared, engine) -> None:
    """N13: that of the first ends the first only."""
    gate = Gate(engine, steps=2)
    first = asyncio.create_task(shared.post(CHAT, json=GREEDY | {"timeout": 0.1}))
    await eventually(lambda: engine.submitted)
    second = asyncio.create_task(shared.post(CHAT, json=GREEDY))
    assert ((await first).status_code, (await first).json()["error"]["code"]) == (408, "deadline_exceeded")
    assert engine.open and engine.submitted[0].timeout is None
    gate.steps = 1000
    assert text_of(await second) == engine.reply and len(engine.submitted) == 1


async def test_what_fails_fails_for_all_before_and_after_it_began(shared, engine) -> None:
    """N13: each hears of it in its own words."""
    too_long = [
        shared.post(CHAT, json=GREEDY | {"max_completion_tokens": 9999}),
        shared.post(CHAT, json=GREEDY | {"max_tokens": 9999}),
        shared.post(RESPONSES, json={"input": "hi", "temperature": 0, "max_output_tokens": 9999}),
    ]
    answers = await asyncio.gather(*too_long)
    params = [answer.json()["error"]["param"] for answer in answers]
    assert params == ["max_completion_tokens", "max_tokens", "max_output_tokens"]
    engine.fail_after = (3, StepError("the step failed"))
    gate = Gate(engine)
    tasks = [asyncio.create_task(shared.post(CHAT, json=GREEDY | {"stream": i % 2 == 1})) for i in range(4)]
    await eventually(lambda: engine.submitted)
    gate.steps = 1000
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [500, 200, 500, 200]
    assert all("step_failed" in answer.text and "[DONE]" not in answer.text for answer in answers)
    engine.fail_after = None
    assert text_of(await shared.post(CHAT, json=GREEDY)) == engine.reply


def test_who_leaves_ends_nothing_for_the_others_and_the_last_ends_it(engine, make_live) -> None:
    """N13, REL-1, on real sockets."""
    live = make_live(engine, coalesce_requests=True)
    gate = Gate(engine, steps=4)

    def opened() -> Any:
        stream = httpx.stream("POST", live.url + CHAT, json=GREEDY | {"stream": True}, timeout=10)
        return stream, stream.__enter__()

    (first, _), (second, answer), (third, _) = opened(), opened(), opened()
    assert len(engine.submitted) == 1
    first.__exit__(None, None, None)
    third.__exit__(None, None, None)
    gate.steps = 8
    lines = answer.iter_lines()
    content = ""
    while content != engine.reply[:8]:
        line = next(lines)
        if line.startswith("data: "):
            content += json.loads(line[6:])["choices"][0]["delta"]["content"]
    assert engine.open and not engine.aborted
    second.__exit__(None, None, None)
    asyncio.run(eventually(lambda: engine.aborted and not engine.open))
    gate.steps = 1000
    assert text_of(httpx.post(live.url + CHAT, json=GREEDY)) == engine.reply and len(engine.submitted) == 2


async def test_filters_see_the_shared_text_one_by_one(engine, make_http, monkeypatch) -> None:
    """N13 with S128: one reader's filter stops its own choice; the sample ends when no reader wants it."""

    class StopsFirst(Hook):
        def answer_filter(self, request, choice):
            return Short(request.body.get("user")) if choice == 0 else None

    class Short(AnswerFilter):
        def __init__(self, user):
            self.left = 3 if user == "short" else 6

        async def push(self, part, text):
            self.left -= len(text)
            return text if self.left > 0 else Stop(text)

    module = ModuleType("house_rules")
    module.__dict__["StopsFirst"] = StopsFirst
    monkeypatch.setitem(sys.modules, "house_rules", module)
    engine.reply = "abcdefghij"
    http = make_http(engine, coalesce_requests=True, hooks=("house_rules:StopsFirst",))
    gate = Gate(engine)
    tasks = [asyncio.create_task(http.post(CHAT, json=GREEDY | {"n": 2, "user": user})) for user in ("short", "long")]
    await eventually(lambda: engine.submitted)
    await asyncio.sleep(0.05)
    gate.steps = 1000
    answers = [[c["message"]["content"] for c in (await task).json()["choices"]] for task in tasks]
    assert answers == [["abc", "abcdefghij"], ["abcdef", "abcdefghij"]]
    assert len(engine.submitted) == 1


class Script:
    """A submit that brings these outputs, one whenever it is let go on."""

    def __init__(self, outputs: list[RequestOutput]) -> None:
        self.outputs = iter(outputs)
        self.is_closed = False
        self.ended: list[int] = []

    async def submit(self) -> Script:
        return self

    def __aiter__(self) -> Script:
        return self

    async def __anext__(self) -> RequestOutput:
        await asyncio.sleep(0)
        try:
            return next(self.outputs)
        except StopIteration:
            raise StopAsyncIteration from None

    def end_sample(self, index: int) -> None:
        self.ended.append(index)

    async def aclose(self) -> None:
        self.is_closed = True


def scripted(rng: random.Random, num_samples: int, num_steps: int, size: int = 3) -> list[RequestOutput]:
    """Random deltas of samples that end at random steps."""
    ends = [rng.randint(1, num_steps) for _ in range(num_samples)]
    ends[0] = num_steps
    return [
        RequestOutput(
            request_id="r",
            prompt=None,
            prompt_token_ids=[1, 2],
            outputs=[
                CompletionOutput(
                    index=i,
                    text="".join(rng.choices("abc", k=rng.randint(0, size))),
                    token_ids=[rng.randint(0, 999)] * rng.randint(1, 2),
                    logprobs=None,
                    finish_reason="stop" if step == ends[i] else None,
                )
                for i in range(num_samples)
                if step <= ends[i]
            ],
            finished=step == num_steps,
        )
        for step in range(1, num_steps + 1)
    ]


def gathered(outputs: list[RequestOutput], num_samples: int) -> list[tuple[str, list[int], str | None]]:
    found: list[tuple[str, list[int], str | None]] = [("", [], None)] * num_samples
    for output in outputs:
        for delta in output.outputs:
            text, ids, reason = found[delta.index]
            assert reason is None, "nothing follows the end"
            found[delta.index] = (text + delta.text, ids + delta.token_ids, delta.finish_reason)
    return found


@pytest.mark.parametrize("seed", range(25))
async def test_whenever_and_however_slowly_one_reads_it_is_the_whole(seed, monkeypatch) -> None:
    """N13, REL-9: the property, over random outputs, times of joining and paces, with and without letting go."""
    monkeypatch.setattr(shared_run, "MAX_REPLAY_BYTES", random.Random(seed).choice([300, 10**9]))
    monkeypatch.setattr(shared_run, "_TRIM", 4)
    rng = random.Random(seed)
    outputs = scripted(rng, num_samples := rng.randint(1, 3), rng.randint(1, 60))
    run = SharedRun(Script(outputs).submit, lambda: None, num_samples)

    async def read(reader: Any) -> list[RequestOutput]:
        found = []
        async for output in reader:
            found.append(output)
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
        return found

    readers = []
    for _ in range(6):
        if run.is_closed:
            break
        readers.append(asyncio.create_task(read(await run.join("x", None).begin())))
        for _ in range(rng.randint(0, 6)):
            await asyncio.sleep(0)
    assert readers
    for found in await asyncio.gather(*readers):
        assert gathered(found, num_samples) == gathered(outputs, num_samples)
        assert [output.finished for output in found] == [False] * (len(found) - 1) + [True]


async def test_what_all_have_read_is_let_go_of_once_nobody_may_join(monkeypatch) -> None:
    """N13: memory is bounded."""
    monkeypatch.setattr(shared_run, "MAX_REPLAY_BYTES", 1000)
    closed: list[bool] = []
    run = SharedRun(Script(scripted(random.Random(1), 1, 5000)).submit, lambda: closed.append(True), 1)
    most = 0
    async for _ in await run.join("x", None).begin():
        most = max(most, len(run.logs[0]._token_ids))
    assert closed == [True] and most < 600


async def test_a_reader_that_lags_too_far_is_ended_and_no_other(monkeypatch) -> None:
    """REL-9."""
    monkeypatch.setattr(shared_run, "MAX_PENDING_BYTES", 5000)
    outputs = scripted(random.Random(2), 1, 400)
    run = SharedRun(Script(outputs).submit, lambda: None, 1)
    quick, slow = run.join("q", None), run.join("s", None)
    found = [output async for output in await quick.begin()]
    assert gathered(found, 1) == gathered(outputs, 1)
    with pytest.raises(OverloadedError, match="too slowly"):
        await anext(slow)


async def test_log_probabilities_stay_with_their_tokens() -> None:
    outputs = scripted(random.Random(3), 1, 30)
    for output in outputs:
        for delta in output.outputs:
            delta.logprobs = [{token: Logprob(-0.5)} for token in delta.token_ids]
    run = SharedRun(Script(outputs).submit, lambda: None, 1)
    reader = await run.join("x", None).begin()
    for _ in range(10):
        await asyncio.sleep(0)
    async for output in reader:
        for delta in output.outputs:
            assert [list(entry) for entry in delta.logprobs or []] == [[token] for token in delta.token_ids]


async def test_who_reads_late_still_learns_what_each_step_brought() -> None:
    """Reasoning is counted by step, so usage must not depend on when one joined."""
    outputs = scripted(random.Random(4), 1, 30)
    steps = [(len(delta.text), len(delta.token_ids)) for output in outputs for delta in output.outputs]
    run = SharedRun(Script(outputs).submit, lambda: None, 1)
    early = await run.join("x", None).begin()
    first = await anext(early)
    for _ in range(100):
        await asyncio.sleep(0)
    late = [output async for output in await run.join("y", None).begin()]
    rest = [output async for output in early]
    for found in (late, [first, *rest]):
        assert [piece for output in found for delta in output.outputs for piece in delta.pieces] == steps


async def test_a_run_that_nobody_waits_for_any_more_is_never_queued() -> None:
    """REL-1: all left while it was being checked."""
    entered, left = asyncio.Event(), asyncio.Event()

    async def submit() -> Any:
        entered.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            left.set()
            raise

    run = SharedRun(submit, lambda: None, 1)
    task = asyncio.create_task(run.join("x", None).begin())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(left.wait(), 1)
    assert run.is_closed


async def test_a_deadline_that_passes_before_it_is_queued_is_told() -> None:
    async def submit() -> Any:
        await asyncio.sleep(30)

    with pytest.raises(DeadlineExceededError):
        await SharedRun(submit, lambda: None, 1).join("x", 0.02).begin()


async def test_the_engine_computes_once_and_is_idle_when_all_have_left(draft_path) -> None:
    """N13 on a real engine: the tokens are those of a request alone, and pages come back when the last one leaves."""
    sizes = {"max_model_len": 512, "kv_cache_memory_bytes": 2**20}
    config = EngineConfig.from_options(model=draft_path, debug=True, **sizes)
    engine = await AsyncEngine.start(config, in_process=True)
    try:
        joined: list[int] = []
        coalescer = Coalescer(engine, lambda: joined.append(1))
        params = SamplingParams(temperature=1.0, seed=7, max_tokens=60, ignore_eos=True)
        ids = await engine.tokenize("Once upon a time")
        alone = [o async for o in engine.generate({"prompt_token_ids": ids}, params, request_id="alone")][-1]

        async def read(name: str, most: int | None = None) -> str:
            stream, text = await coalescer.submit(ids, params, request_id=name, delta=True, timeout=30.0), ""
            async for output in stream:
                text += "".join(delta.text for delta in output.outputs)
                if most is not None and len(text) >= most:
                    break
            await stream.aclose()
            return text

        before = engine.stats.generation_tokens
        texts = await asyncio.gather(read("a"), read("b"), read("c", most=5))
        assert texts[0] == texts[1] == alone.outputs[0].text and len(joined) == 2
        await eventually(lambda: engine.stats.generation_tokens - before == 60)
        await asyncio.gather(read("d", most=5), read("e", most=5))
        await eventually(lambda: len(engine.requests) == engine.stats.num_used_pages == 0)
        with pytest.raises(InvalidRequestError):
            await coalescer.submit([], params, request_id="f", delta=True)
    finally:
        await engine.close()
