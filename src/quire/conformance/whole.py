"""Section h: streams add up to whole answers field by field, the official client's own helpers, and many at once."""

from __future__ import annotations

import asyncio
from typing import Any

from quire.conformance.accumulate import Reply, accumulate, reply_of
from quire.conformance.check import MUST, Check
from quire.conformance.events import JsonObject, Stream
from quire.conformance.failures import check_failed_end
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import GREEDY, Target, user
from quire.conformance.tool_requests import NAMED, REQUIRED, call_fields
from quire.conformance.usage import WITH_USAGE, counts_of


async def _golden(target: Target) -> str:
    cases: dict[str, JsonObject] = {
        "text": {},
        "a seed": {"temperature": 0.9, "seed": 11},
        "three choices": {"n": 3, "temperature": 0.9, "seed": 11},
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "one token": {"max_tokens": 1},
        "wide characters": {"messages": user("\N{SLIGHTLY SMILING FACE}\N{EURO SIGN}" * 8), "max_tokens": 48},
        "a required call": call_fields(REQUIRED),
        "a named call": call_fields(NAMED),
    }
    skipped = []
    for name, fields in cases.items():
        try:
            await _compare(target, name, fields)
        except SkippedCheckError:
            target.need_chat()
            skipped.append(name)
    if len(skipped) == len(cases):
        raise SkippedCheckError("none of the requests was taken")
    return f"not tried: {', '.join(skipped)}" if skipped else f"{len(cases)} kinds of request"


async def _compare(target: Target, name: str, fields: JsonObject) -> None:
    whole, again = [await target.chat(fields, may_lack=True) for _ in range(2)]
    stream = await target.stream({**fields, **WITH_USAGE})
    expected, repeated, streamed = _replies(whole), _replies(again), accumulate(stream)
    if any(reply.differences(repeated[index]) for index, reply in expected.items() if index in repeated):
        raise SkippedCheckError("the server does not repeat itself (line 46)")
    require(set(streamed) == set(expected), f"the choices {sorted(expected)} for {name}", sorted(streamed))
    for index, reply in expected.items():
        found = streamed[index].differences(reply)
        require(not found, f"the stream of {name} to add up to the whole answer", f"(streamed, whole): {found}")
    counts = counts_of(stream.chunks[-1])["completion_tokens"], counts_of(whole)["completion_tokens"]
    require(counts[0] == counts[1], f"the same completion_tokens for {name}", counts)


def _replies(answer: JsonObject) -> dict[int, Reply]:
    choices = member(answer, "choices", list, "answer")
    return {member(choice, "index", int, "choice"): reply_of(choice) for choice in choices}


async def _client(target: Target) -> str:
    """The official client, where it is installed: stream helper, parse, raw response, all asynchronous."""
    try:
        import openai
    except ImportError:
        raise SkippedCheckError("the package openai is not installed") from None
    target.need_chat()
    key = target.options.api_key or "unused"
    options = target.options
    async with openai.AsyncOpenAI(base_url=f"{target.base_url}/v1", api_key=key, timeout=options.timeout) as client:
        try:
            return await _drive(client.chat.completions, target)
        except openai.OpenAIError as error:
            require(False, "the official client to understand the answers", f"{type(error).__name__}: {error}")
    return ""


async def _drive(completions: Any, target: Target) -> str:
    asked: JsonObject = {"model": target.facts.model, "messages": user("Tell me a story."), "max_tokens": 24, **GREEDY}
    whole = await completions.create(**asked)
    raw = await completions.with_raw_response.create(**asked)
    require(raw.parse().choices[0].message.content == whole.choices[0].message.content, "the raw response", raw.text)
    text, reason = await _helped(completions, asked)
    wanted = whole.choices[0].message.content or ""
    require(text == wanted, f"the text {wanted!r} from the stream helper", text)
    require(reason == whole.choices[0].finish_reason, f"finish_reason {whole.choices[0].finish_reason}", reason)
    return "create, with_raw_response and stream"


async def _helped(completions: Any, asked: JsonObject) -> tuple[str, str]:
    """The text and the finish reason that the official client's stream helper makes of a stream."""
    import openai

    text, reason = "", ""
    try:
        async with completions.stream(**asked) as stream:
            async for event in stream:
                text += event.delta if event.type == "content.delta" else ""
            reason = (await stream.get_final_completion()).choices[0].finish_reason
    except openai.LengthFinishReasonError:
        reason = "length"  # how the helper reports an answer that was cut
    return text, reason


async def _many(target: Target) -> str:
    """Everything at once: every stream ends well, or is refused with a status; none is mixed up with another."""
    target.need_chat()
    fields = {**target.facts.endless, "max_tokens": 16}
    alone = accumulate(await target.stream(fields))[0]
    count = target.options.concurrency
    outcomes = await asyncio.gather(*(_one_of_many(target, fields, alone.content) for _ in range(count)))
    refused = outcomes.count("refused")
    require(refused < count, "some of the streams to be served", f"all {count} refused")
    return f"{count - refused} of {count} streams at once, {refused} refused"


async def _one_of_many(target: Target, fields: JsonObject, text: str) -> str:
    stream = Stream(await target.raw_answer(target.body({**fields, "stream": True})))
    status = stream.answer.status
    if status in (429, 503):
        return "refused"
    require(status == 200, "HTTP 200, 429 or 503", f"HTTP {status} {stream.text}")
    check_failed_end(stream)
    found = accumulate(stream)[0].content
    require(found == text, f"the text of the same request alone, {text!r}", found)
    return "served"


CHECKS = (
    Check("h1", MUST, "a stream adds up to the whole answer of the same seed, field by field", _golden),
    Check("h2", MUST, "the official client's create, with_raw_response and stream() understand the answers", _client),
    Check("h3", MUST, "a thousand streams at once end well or are refused, and none is mixed up", _many, is_slow=True),
)
