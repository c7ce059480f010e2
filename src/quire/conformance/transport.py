"""Section a, lines 1 to 7: framing, the end mark, flushing, comments, leaving, request ids, errors before a stream."""

from __future__ import annotations

import asyncio
import itertools
import time

from quire.conformance.check import MUST, SHOULD, Check
from quire.conformance.events import DONE, JsonObject
from quire.conformance.outcome import FailedCheckError, SkippedCheckError, require
from quire.conformance.server_metrics import Activity, activity
from quire.conformance.target import CHAT, Target, user

_EVENT_START = b"data: {"
_LEAVING_TOKENS = 4000
_FLUSH_TOKENS = 200


async def _framing(target: Target) -> str:
    stream = await target.stream({"stream_options": {"include_usage": True}})
    kind = stream.answer.headers.get("content-type", "")
    media, _, parameters = kind.lower().partition(";")
    require(media.strip() == "text/event-stream", "Content-Type: text/event-stream", kind)
    require("charset" not in parameters or "utf-8" in parameters, "UTF-8", kind)
    *events, tail = stream.text.split("\n\n")
    require(tail == "", "a blank line after the last event", tail)
    for event in events:
        if event.startswith(":"):
            continue
        require(
            "\n" not in event and event.startswith("data: "), "an event of one line that starts with 'data: '", event
        )
        text = event.removeprefix("data: ")
        require(text.startswith((DONE, "{")), f"a JSON object or {DONE} in the event", event)
    return f"{len(events)} events"


async def _end_mark(target: Target) -> str:
    cases: tuple[JsonObject, ...] = ({}, {"stream_options": {"include_usage": True}}, {"max_tokens": 1})
    for fields in cases:
        stream = await target.stream(fields)
        require(stream.error is None, "a stream that does not fail", stream.error)
        require(stream.is_done, f"data: {DONE} at the end", stream.text[-120:])
        place = next(i for i, payload in enumerate(stream.payloads) if payload.startswith(DONE))
        require(place == len(stream.payloads) - 1, f"nothing after {DONE}", stream.payloads[place + 1 :])
        require(stream.answer.is_complete, "a body that ends properly", "a connection that broke off")
    return ""


async def _flushed(target: Target) -> str:
    stream = await target.stream({**target.facts.endless, "max_tokens": _FLUSH_TOKENS})
    headers = stream.answer.headers
    require("no-cache" in headers.get("cache-control", ""), "Cache-Control: no-cache", headers.get("cache-control"))
    require(headers.get("x-accel-buffering") == "no", "X-Accel-Buffering: no", headers.get("x-accel-buffering"))
    events = len(stream.payloads)
    if events < 8:
        raise SkippedCheckError(f"an answer of {events} events is too short to see them arrive one by one")
    arrivals = stream.answer.arrivals
    require(len(arrivals) >= 3, f"{events} events to arrive one by one", f"{len(arrivals)} arrivals")
    at_once = max(data.count(_EVENT_START) for _, data in arrivals)
    require(at_once <= events / 2, "events sent as they come", f"{at_once} of {events} in one arrival")
    return f"{events} events in {len(arrivals)} arrivals"


async def _comments(target: Target) -> str:
    """Where a server keeps a connection alive it must be by comments; a long prompt gives it a reason to."""
    count = 0
    for words in (4, _prompt_words(target)):
        stream = await target.stream({"messages": user("word " * words), "max_tokens": 4})
        for block in stream.text.split("\n\n"):
            lines = block.split("\n")
            is_comment = lines[0].startswith(":")
            others = [line for line in lines if line and not line.startswith((":", "data:"))]
            require(not others, "nothing but data and comments in the stream", others)
            require(not is_comment or len(lines) == 1, "a blank line after a comment", block)
            count += is_comment
        for item in stream.objects:
            require("choices" in item or "error" in item, "keep-alives as comments, not as events", item)
    return f"{count} comments came" if count else "no comment came"


def _prompt_words(target: Target) -> int:
    return min(2000, (target.facts.context or 4096) // 4)


async def _keep_alive(target: Target) -> str:
    """A queue of streams: those at its end are silent for as long as the others take."""
    silences = await asyncio.gather(*(_longest_silence(target) for _ in range(min(target.options.concurrency, 256))))
    longest, limit = max(silences), target.options.keep_alive_seconds
    require(longest <= limit * 1.2, f"a comment after at most {limit:g} s of silence", f"{longest:.1f} s of silence")
    if longest < limit / 2:
        raise SkippedCheckError(f"no stream was silent for {limit / 2:g} s, so none needed a comment")
    return f"longest silence {longest:.1f} s"


async def _longest_silence(target: Target) -> float:
    stream = await target.stream({**target.facts.endless, "max_tokens": 512})
    times = [0.0, *(when for when, _ in stream.answer.arrivals)]
    return max(after - before for before, after in itertools.pairwise(times))


async def _leaving(target: Target) -> str:
    before = await activity(target)
    if before.running:
        raise SkippedCheckError(f"{before.running:g} other requests run on this server")
    if not target.facts.endless:
        raise SkippedCheckError(
            "the server takes no field that keeps an answer going, so none can be left in its middle"
        )
    room = (target.facts.context or _LEAVING_TOKENS) - 256
    tokens = max(64, min(_LEAVING_TOKENS, room))
    notes = [await _leave(target, tokens, is_stream=is_stream) for is_stream in (True, False)]
    return "; ".join(notes)


async def _leave(target: Target, tokens: int, *, is_stream: bool) -> str:
    kind = "streamed" if is_stream else "unstreamed"
    body = target.body({**target.facts.endless, "max_tokens": tokens, "stream": is_stream})
    before = await activity(target)
    async with asyncio.timeout(target.options.timeout), target.exchange(CHAT, body) as exchange:
        if is_stream:
            answer = await exchange.head()
            require(answer.status == 200, "HTTP 200", answer.status)
            await anext(exchange.arrivals(answer))
        else:
            await _until_running(target)
        exchange.hang_up()
    left = time.monotonic()
    after = await _until_idle(target)
    seconds = time.monotonic() - left
    if before.generated is not None and after.generated is not None:
        made = after.generated - before.generated
        require(made < tokens, f"a {kind} request that ends when its client leaves", f"all {tokens} tokens generated")
        return f"{kind}: {made:g} of {tokens} tokens, idle after {seconds:.2f} s"
    return f"{kind}: idle after {seconds:.2f} s"


async def _until_running(target: Target) -> None:
    deadline = time.monotonic() + target.options.settle_seconds
    while time.monotonic() < deadline:
        if (await activity(target)).running:
            return
        await asyncio.sleep(0.005)
    raise SkippedCheckError("a long unstreamed request was never seen running")


async def _until_idle(target: Target) -> Activity:
    deadline = time.monotonic() + target.options.settle_seconds
    while True:
        now = await activity(target)
        if not now.running:
            return now
        if time.monotonic() > deadline:
            seconds = target.options.settle_seconds
            raise FailedCheckError(
                f"wanted no running request once the client has left; found {now.running:g} after {seconds:g} s"
            )
        await asyncio.sleep(0.02)


async def _request_ids(target: Target) -> str:
    answers = {
        "GET /v1/models": await target.ask("GET", "/v1/models"),
        "an unknown route": await target.ask("GET", "/v1/no-such-route"),
        "a refused request": await target.ask("POST", CHAT, {}),
    }
    if not target.facts.no_chat:
        answers["a chat"] = await target.ask("POST", CHAT, target.body({"max_tokens": 1}))
        stream = await target.stream({"max_tokens": 1})
        require(bool(stream.answer.headers.get("x-request-id")), "x-request-id on a stream", stream.answer.headers)
    for name, answer in answers.items():
        require(bool(answer.headers.get("x-request-id")), f"x-request-id on {name}", dict(answer.headers))
    ids = [answer.headers["x-request-id"] for answer in answers.values()]
    require(len(set(ids)) == len(ids), "an id of its own for every request", ids)
    return ""


async def _refused_before(target: Target) -> str:
    words = "word " * ((target.facts.context or 0) + 16)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "no-such-type"}}}
    cases: dict[str, JsonObject] = {
        "a top_p of 7": {"top_p": 7},
        "messages that are no list": {"messages": "hello"},
        "an unknown model": {"model": "no-such-model"},
        "a schema with an unknown type": {"response_format": schema},
    }
    if target.facts.context:
        cases["an over-long prompt"] = {"messages": user(words)}
    target.need_chat()
    for name, fields in cases.items():
        answer = await target.raw_answer(target.body({**fields, "stream": True}))
        require(answer.status >= 400, f"a real status for {name} before a stream opens", f"HTTP {answer.status}")
        kind = answer.headers.get("content-type", "")
        require(kind.startswith("application/json"), f"a JSON body for {name}", kind)
    return "" if target.facts.context else "over-long prompts not tried: the server does not say its length"


CHECKS = (
    Check(
        "1", MUST, "text/event-stream in UTF-8; every event is 'data: ', one line of JSON and a blank line", _framing
    ),
    Check("2", MUST, "a stream that went well ends with data: [DONE], and nothing follows", _end_mark),
    Check("3", MUST, "events are flushed one by one, and the headers keep proxies from buffering", _flushed),
    Check("4", MUST, "keep-alives are comment lines, and nothing else is in the stream", _comments),
    Check("4r", SHOULD, "a waiting stream gets a comment every 15 to 30 seconds", _keep_alive, is_slow=True),
    Check("5", MUST, "a client that leaves ends its request, streamed or not", _leaving),
    Check("6", SHOULD, "every response carries x-request-id", _request_ids),
    Check(
        "7",
        MUST,
        "a refused request has a real status and a JSON body, also when it asked for a stream",
        _refused_before,
    ),
)
