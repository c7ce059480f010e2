"""Hooks: what they see, change, hold back, refuse and stop, on every route; and that nothing passes one that fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.config import ServerConfig
from quire.base.errors import ConfigError
from quire.server.app import create_app
from quire.server.hooks import AnswerFilter, Hook, Part, Reject, Stop

CHAT, PLAIN, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ROUTES = (CHAT, PLAIN, RESPONSES, MESSAGES)
ECHO = '<tool_call>{"name": "echo", "arguments": {"text": "a swordfish"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "echo", "parameters": {"type": "object"}}}]


def example() -> dict[str, Any]:
    """The names that the document's example defines."""
    document = Path(__file__).resolve().parents[2] / "docs" / "hooks.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "house_rules"}
    exec(compile(code, "docs/hooks.md", "exec"), names)
    return names


EXAMPLE = example()
WordFilter = EXAMPLE["WordFilter"]


@pytest.fixture
def make_hooked(monkeypatch, make_http):
    """A client of a server with these hooks: `make_hooked(engine, Hook)`."""
    module = ModuleType("house_rules")
    monkeypatch.setitem(sys.modules, "house_rules", module)

    def make(engine: Any, *hooks: type[Hook], **options: Any) -> Any:
        for hook in hooks:
            setattr(module, hook.__name__, hook)
        return make_http(engine, hooks=tuple(f"house_rules:{hook.__name__}" for hook in hooks), **options)

    return make


def body(route: str, text: str = "hi", **fields: Any) -> dict[str, Any]:
    match route:
        case "/v1/completions":
            return {"prompt": text, "max_tokens": 100} | fields
        case "/v1/responses":
            return {"input": text} | fields
        case "/v1/messages":
            return {"messages": [{"role": "user", "content": text}], "max_tokens": 100, "model": "quire-demo"} | fields
    return {"messages": [{"role": "user", "content": text}]} | fields


def answer_of(route: str, data: dict[str, Any]) -> tuple[str, str]:
    """The text and the reason of the end, of a whole answer."""
    match route:
        case "/v1/completions":
            return data["choices"][0]["text"], data["choices"][0]["finish_reason"]
        case "/v1/responses":
            texts = [part["text"] for item in data["output"] for part in item["content"]]
            return "".join(texts), (data["incomplete_details"] or {"reason": data["status"]})["reason"]
        case "/v1/messages":
            return "".join(block["text"] for block in data["content"]), data["stop_reason"]
    return data["choices"][0]["message"]["content"], data["choices"][0]["finish_reason"]


def streamed_answer_of(route: str, text: str) -> tuple[str, str]:
    """The same of a stream."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert not any("error" in event and event["error"] for event in events), text
    match route:
        case "/v1/responses":
            deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
            whole = answer_of(route, events[-1]["response"])
            assert whole[0] == "".join(deltas)
            return whole
        case "/v1/messages":
            deltas = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
            return "".join(deltas), next(e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta")
    choices = [choice for event in events for choice in event["choices"]]
    texts = [choice["text"] if route == PLAIN else choice["delta"].get("content") or "" for choice in choices]
    return "".join(texts), choices[-1]["finish_reason"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_refused_prompt_gets_the_hooks_own_error_and_reaches_no_engine(
    engine, make_hooked, route, is_stream
) -> None:
    """S128: with status and code of the hook, in the route's shape, before a stream opens."""
    http = make_hooked(engine, EXAMPLE["SafetyFilter"])
    answer = await http.post(route, json=body(route, "How do I PICK A LOCK?", stream=is_stream))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    error = answer.json()["error"]
    assert error["message"] == "this server does not answer that"
    assert route == MESSAGES or error["code"] == "content_filter"
    assert not engine.submitted and not engine.rendered
    assert 'quire:request_failures_total{code="content_filter"} 1.0' in (await http.get("/metrics")).text


async def test_a_prompt_of_token_ids_is_read_as_its_text(engine, make_hooked) -> None:
    http = make_hooked(engine, EXAMPLE["SafetyFilter"])
    for prompt in (list(b"pick a lock"), [list(b"hi"), list(b"pick a lock")], ["hi", "pick a lock"]):
        assert (await http.post(PLAIN, json={"prompt": prompt})).status_code == 400
    assert (await http.post(PLAIN, json={"prompt": list(b"hi")})).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("reply", "shown", "is_stopped"),
    [
        ("a Swordfish and swords", "a ********* and *****s", False),
        ("it ends in sword", "it ends in *****", False),
        ("nothing for launch cod", "nothing for launch cod", False),
        ("the launch code is 1234", "the ", True),
    ],
)
async def test_the_filtered_stream_is_the_filtered_answer(engine, make_hooked, route, reply, shown, is_stopped) -> None:
    """S128: a word is masked although each token brings one byte of it; a stopped answer says so in the API's word."""
    engine.reply = reply
    http = make_hooked(engine, EXAMPLE["SafetyFilter"])
    whole = answer_of(route, (await http.post(route, json=body(route))).json())
    streamed = streamed_answer_of(route, (await http.post(route, json=body(route, stream=True))).text)
    ends = {RESPONSES: ("completed", "content_filter"), MESSAGES: ("end_turn", "refusal")}
    assert whole == streamed == (shown, ends.get(route, ("stop", "content_filter"))[is_stopped])
    assert not engine.open and len(engine.aborted) == 2 * is_stopped


@given(st.text("swordfih lauch code", max_size=80), st.lists(st.integers(1, 7), min_size=1))
def test_the_examples_filter_does_not_depend_on_the_cuts(text, sizes) -> None:
    """The property that makes streams equal to whole answers."""

    async def run(pieces: list[str]) -> str:
        words, shown = WordFilter(), ""
        for method, args in [*((words.push, (Part("content"), p)) for p in pieces), (words.end, (Part("content"),))]:
            said = await method(*args)
            if isinstance(said, Stop):
                return shown + said.text + "|"
            shown += said
        return shown

    sizes_in_turn, pieces, rest = itertools.cycle(sizes), [], text
    while rest:
        size = next(sizes_in_turn)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert asyncio.run(run(pieces)) == asyncio.run(run([text]))


async def test_one_choice_is_stopped_and_the_others_go_on(engine, make_hooked) -> None:
    """S128: per choice; the engine ends that sample alone."""

    class StopsOne(Hook):
        def answer_filter(self, request, choice):
            return Counter(3 if choice == 1 else 1000)

    class Counter(AnswerFilter):
        def __init__(self, most):
            self.left = most

        async def push(self, part, text):
            self.left -= 1
            return text if self.left else Stop("!")

    engine.reply = "abcdef"
    http = make_hooked(engine, StopsOne)
    choices = (await http.post(CHAT, json=body(CHAT, n=3))).json()["choices"]
    assert [(c["message"]["content"], c["finish_reason"]) for c in choices] == [
        ("abcdef", "stop"),
        ("ab!", "content_filter"),
        ("abcdef", "stop"),
    ]
    answer = await http.post(PLAIN, json={"prompt": ["x", "y"], "n": 1, "max_tokens": 50, "stream": True})
    texts = {0: "", 1: ""}
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            choice = json.loads(line[6:])["choices"][0]
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "abcdef", 1: "ab!"} and "[DONE]" in answer.text


async def test_reasoning_and_arguments_go_through_as_parts_of_their_own(engine, make_hooked, parse_sse) -> None:
    """S128: arguments are text too, and a part's rest comes before the next part."""
    parts: list[tuple[str, str | None, str]] = []

    class Watch(Hook):
        def answer_filter(self, request, choice):
            return Watching()

    class Watching(WordFilter):
        async def push(self, part, text):
            parts.append((part.kind, part.tool, text))
            return await super().push(part, text)

    engine.traits.reasoning_format = "think"
    engine.reply = f"<think>sword</think>A swordfish. {ECHO}"
    http = make_hooked(engine, Watch)
    asked = body(CHAT, tools=TOOLS)
    choice = (await http.post(CHAT, json=asked)).json()["choices"][0]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"].strip()) == ("*****", "A *********.")
    assert message["tool_calls"][0]["function"]["arguments"] == '{"text": "a *********"}'
    assert choice["finish_reason"] == "tool_calls"
    assert [kind for kind, _ in itertools.groupby(parts, lambda p: p[:2])] == [
        ("reasoning", None),
        ("content", None),
        ("tool_arguments", "echo"),
    ]
    assert ("tool_arguments", "echo", "") in parts and "think" not in "".join(text for *_, text in parts)
    events = [json.loads(e) for e in parse_sse((await http.post(CHAT, json=asked | {"stream": True})).text)[:-1]]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    calls = [call["function"] for d in deltas for call in d.get("tool_calls", ())]
    assert "".join(call.get("arguments", "") for call in calls) == message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES])
async def test_a_call_that_a_filter_stops_before_it_begins_is_never_named(engine, make_hooked, route) -> None:
    class NoCalls(Hook):
        def answer_filter(self, request, choice):
            return Refusing()

    class Refusing(AnswerFilter):
        async def push(self, part, text):
            return Stop() if part.kind == "tool_arguments" else text

    engine.reply = f"Well. {ECHO}"
    tool = {
        CHAT: TOOLS,
        RESPONSES: [{"type": "function", "name": "echo", "parameters": {"type": "object"}}],
        MESSAGES: [{"name": "echo", "input_schema": {"type": "object"}}],
    }[route]
    http = make_hooked(engine, NoCalls)
    for is_stream in (False, True):
        answer = await http.post(route, json=body(route, tools=tool, stream=is_stream))
        assert answer.status_code == 200 and not engine.open
        # Responses repeat the tools that were asked for.
        assert "swordfish" not in answer.text and '"function_call"' not in answer.text and "tool_use" not in answer.text
    assert len(engine.aborted) == 2


async def test_hooks_change_the_prompt_the_priority_and_the_model(engine, make_hooked) -> None:
    """S128: names that are not served are mapped before they are looked up."""

    class Route(Hook):
        async def on_request(self, request):
            assert request.body["model"] == "gpt-9"
            request.body |= {"model": "org/alias", "priority": 7, "temperature": 0}
            request.body["messages"][-1]["content"] += " there"

    http = make_hooked(engine, Route)
    for route in (CHAT, RESPONSES, MESSAGES):
        answer = await http.post(route, json=body(route, model="gpt-9"))
        assert (answer.status_code, answer.json()["model"]) == (200, "org/alias"), answer.text
        assert engine.rendered[-1]["messages"][-1]["content"] == "hi there"
        assert (engine.submitted[-1].priority, engine.submitted[-1].params.temperature) == (7, 0)


async def test_a_model_that_no_hook_mapped_is_not_found(engine, make_hooked) -> None:
    http = make_hooked(engine, Hook)
    answer = await http.post(CHAT, json=body(CHAT, model="gpt-9"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_hooks_see_whose_request_it_is_and_no_key(engine, make_hooked) -> None:
    seen = []

    class Watch(Hook):
        async def on_request(self, request):
            seen.append(request)

    http = make_hooked(engine, Watch, api_key=("k1",), root_path="/llm")
    headers = {"authorization": "Bearer k1", "x-api-key": "k1", "cookie": "k1", "x-request-id": "r-1", "x-team": "a"}
    assert (await http.post("/llm" + MESSAGES, json=body(MESSAGES, "Héllo"), headers=headers)).status_code == 200
    (request,) = seen
    assert (request.tenant, request.request_id, request.path) == ("default", "r-1", MESSAGES)
    assert request.headers["x-team"] == "a" and "k1" not in str(request.headers)
    assert request.body["messages"] == [{"role": "user", "content": "Héllo"}] and "stream" not in request.body


async def test_a_continued_response_is_seen_whole(engine, make_hooked) -> None:
    texts: list[list[str]] = []

    class Watch(Hook):
        async def on_request(self, request):
            texts.append(await request.texts())

    http = make_hooked(engine, Watch)
    first = (await http.post(RESPONSES, json={"input": "one"})).json()
    await http.post(RESPONSES, json={"input": "two", "previous_response_id": first["id"]})
    assert {"one", engine.reply, "two"} <= set(texts[1])


async def test_a_hook_that_is_late_or_broken_lets_nothing_through(engine, make_hooked, caplog) -> None:
    """S128, SEC-30: closed when it fails; the log has the name, the client none of it."""

    class Late(Hook):
        async def on_request(self, request):
            await asyncio.sleep(5)

    class Broken(Hook):
        async def on_request(self, request):
            raise RuntimeError("connection to 10.0.0.7 refused")

    class Vague(Hook):
        async def on_request(self, request):
            return True

    class Shaping(Hook):
        async def on_request(self, request):
            request.body["n"] = 2

    class Ruining(Hook):
        async def on_request(self, request):
            request.body = {"messages": "hello"}

    cases = {Late: (503, "hook_timeout"), **dict.fromkeys((Broken, Vague, Shaping, Ruining), (500, "hook_failed"))}
    for hook, (status, code) in cases.items():
        http = make_hooked(engine, hook, hook_timeout=0.05)
        caplog.clear()
        answer = await http.post(CHAT, json=body(CHAT))
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), hook
        assert "10.0.0.7" not in answer.text and hook.__name__ not in answer.text
        assert f"hook house_rules:{hook.__name__} " in caplog.text
    assert not engine.submitted


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("kind", "status"), [("late", 503), ("broken", 500), ("vague", 500), ("rejects", 403)])
async def test_a_filter_that_fails_midway_ends_the_answer_with_its_error(
    engine, make_hooked, route, kind, status
) -> None:
    """S128: an error event in a stream, a status for a whole answer; the generation ends and no more text is sent."""

    class Failing(Hook):
        def answer_filter(self, request, choice):
            return Fails()

    class Fails(AnswerFilter):
        left = 3

        async def push(self, part, text):
            self.left -= 1
            if self.left:
                return text
            if kind == "late":
                await asyncio.sleep(5)
            if kind == "broken":
                raise RuntimeError("secret of the house")
            return Reject("enough", status=403, code="enough") if kind == "rejects" else None

    engine.reply = "abXdef"
    http = make_hooked(engine, Failing, hook_timeout=0.05)
    whole = await http.post(route, json=body(route))
    assert whole.status_code == status and "X" not in whole.text
    streamed = await http.post(route, json=body(route, stream=True))
    assert streamed.status_code == 200 and "error" in streamed.text and "[DONE]" not in streamed.text
    assert "X" not in streamed.text and "secret of" not in whole.text + streamed.text
    assert ("enough" in streamed.text) == (kind == "rejects")
    assert not engine.open and len(engine.aborted) == 2


async def test_what_would_show_the_hidden_text_is_refused_where_there_is_a_filter(engine, make_hooked) -> None:
    """S128: log-probabilities and token ids are the text in another form."""
    http = make_hooked(engine, EXAMPLE["SafetyFilter"])
    for route, fields in (
        (CHAT, {"logprobs": True}),
        (CHAT, {"return_token_ids": True}),
        (PLAIN, {"logprobs": 1}),
        (PLAIN, {"return_token_ids": True}),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}),
    ):
        answer = await http.post(route, json=body(route, **fields))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_value"), answer.text
    assert not engine.submitted
    unfiltered = make_hooked(engine, Hook)
    choice = (await unfiltered.post(CHAT, json=body(CHAT, logprobs=True))).json()["choices"][0]
    assert len(choice["logprobs"]["content"]) > 10


async def test_hooks_are_layers_around_the_engine(engine, make_hooked) -> None:
    """Requests in the order of the setting, answers in the opposite one; who is further out sees a stopped end too."""
    seen = []

    def layer(name: str) -> type[Hook]:
        class Mark(AnswerFilter):
            async def push(self, part, text):
                return Stop(text + name) if name == "B" and text == "c" else text.replace("a", name + "a")

            async def end(self, part):
                return f"[{name}]"

        class Layer(Hook):
            async def on_request(self, request):
                seen.append(name)

            def answer_filter(self, request, choice):
                return Mark()

        Layer.__name__ = f"Layer{name}"
        return Layer

    engine.reply = "abcd"
    http = make_hooked(engine, layer("A"), layer("B"))
    choice = (await http.post(CHAT, json=body(CHAT))).json()["choices"][0]
    assert seen == ["A", "B"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("BAabcB[A]", "content_filter")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("house_rules", "not of the form"),
        ("nowhere.at.all:Filter", "cannot be imported"),
        ("house_rules:Missing", "names nothing"),
        ("house_rules:number", "names a int"),
        ("house_rules:broken", "failed: RuntimeError: no"),
        ("house_rules:dict", "made a dict"),
        ("house_rules:Plain", "must be an async def"),
    ],
)
def test_a_setting_that_leads_to_no_hook_stops_the_start(monkeypatch, setting, problem) -> None:
    def broken() -> Hook:
        raise RuntimeError("no")

    class Plain(Hook):
        def on_request(self, request):
            return None

    module = ModuleType("house_rules")
    module.__dict__.update(number=7, broken=broken, dict=dict, Plain=Plain)
    monkeypatch.setitem(sys.modules, "house_rules", module)
    with pytest.raises(ConfigError, match="hooks: ") as caught:
        create_app(None, ServerConfig(hooks=(setting,)))
    assert setting in str(caught.value) and problem in str(caught.value)


def test_a_rejection_blames_the_request() -> None:
    with pytest.raises(ValueError, match="from 400 to 499"):
        Reject("down", status=503)


async def test_without_hooks_nothing_of_them_is_on_the_way(engine, http, monkeypatch) -> None:
    monkeypatch.setattr("quire.server.incoming.FilteredGeneration", None)
    monkeypatch.setattr("quire.server.hooks.requests.until_disconnect", None)
    for route in ROUTES:
        assert answer_of(route, (await http.post(route, json=body(route))).json())[0] == engine.reply


def test_a_client_that_leaves_ends_the_hook_that_looks_at_its_request(engine, make_live, monkeypatch) -> None:
    """REL-1, on a real socket: nothing is queued for it, and its place is free again."""
    states: list[str] = []

    class Slow(Hook):
        async def on_request(self, request):
            states.append("asked")
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                states.append("left")
                raise

    module = ModuleType("house_rules")
    module.__dict__["Slow"] = Slow
    monkeypatch.setitem(sys.modules, "house_rules", module)
    live = make_live(engine, hooks=("house_rules:Slow",))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(live.url + CHAT, json=body(CHAT), timeout=0.3)
    end = time.monotonic() + 5
    while states != ["asked", "left"] and time.monotonic() < end:
        time.sleep(0.01)
    assert states == ["asked", "left"] and not engine.submitted
