"""Section f, lines 37 to 43: errors as bodies, statuses, headers and events."""

from __future__ import annotations

import asyncio
import json
import re

from quire.conformance.check import MUST, SHOULD, Check
from quire.conformance.events import Stream
from quire.conformance.outcome import SkippedCheckError, require
from quire.conformance.raw import connect, json_request
from quire.conformance.target import CHAT, Answer, Target, user

_KEYS = {"message", "type", "param", "code"}
_HUGE = "a body of 10^12 bytes"
_HUGE_BYTES = 10**12
_REFUSAL_SECONDS = 3.0
_LIMITS = ("limit", "remaining", "reset")
_OVERFLOW_TOKENS = 17


async def _refusals(target: Target) -> dict[str, tuple[int, Answer]]:
    """Requests that fail on every route and in every way, with the status each should have."""
    chat = target.body({})
    text = {**target.key_headers, "Content-Type": "text/plain"}
    cases = {
        "an unknown route": (404, await target.ask("GET", "/v1/no-such-route")),
        "GET on the chat route": (405, await target.ask("GET", CHAT)),
        "an unknown model's card": (404, await target.ask("GET", "/v1/models/no-such/model")),
        "an unknown model": (404, await target.ask("POST", CHAT, {**chat, "model": "no-such-model"})),
        "a body that is no JSON": (400, await target.ask("POST", CHAT, b"{oops")),
        "a body without messages": (400, await target.ask("POST", CHAT, {"model": target.facts.model})),
        "a top_p of 7": (400, await target.ask("POST", CHAT, {**chat, "top_p": 7})),
        "a body in text/plain": (415, await target.ask("POST", CHAT, json.dumps(chat).encode(), headers=text)),
    }
    if target.options.api_key:
        wrong = {"Authorization": "Bearer not-the-key"}
        cases["no key"] = (401, await target.ask("GET", "/v1/models", headers={}))
        cases["a wrong key"] = (401, await target.ask("POST", CHAT, chat, headers=wrong))
    huge = await _refused_by_length(target)
    if huge is not None:
        cases[_HUGE] = (413, huge)
    return cases


async def _refused_by_length(target: Target) -> Answer | None:
    """The answer to a request that announces a body far too large; None when the server waits for it to come."""
    headers, _ = json_request(target.base_url, {}, {**target.key_headers, "Content-Length": str(_HUGE_BYTES)})
    async with connect(target.base_url) as exchange:
        await exchange.send("POST", target.raw_path(CHAT), headers, b'{"model": "')
        try:
            async with asyncio.timeout(min(_REFUSAL_SECONDS, target.options.timeout)):
                answer = await exchange.head()
                async for _ in exchange.arrivals(answer):
                    pass
        except TimeoutError:
            return None
    return Answer(answer.status, answer.headers, answer.body.decode("utf-8", "replace"))


async def _bodies(target: Target) -> str:
    for name, (_, answer) in (await _refusals(target)).items():
        require(answer.status >= 400, f"a refusal of {name}", str(answer))
        body = answer.json
        require(isinstance(body.get("error"), dict), f'{{"error": {{...}}}} for {name}', answer.text)
        error = answer.error
        require(set(error) >= _KEYS, f"message, type, param and code in the error for {name}", answer.text)
        texts = (error["message"], error["type"])
        require(all(isinstance(one, str) and one for one in texts), f"message and type as text for {name}", answer.text)
        require(isinstance(error["param"], str | None), f"param as text or null for {name}", answer.text)
    return ""


async def _codes(target: Target) -> str:
    for name, (_, answer) in (await _refusals(target)).items():
        code = answer.error.get("code")
        require(isinstance(code, str | None), f"code as text or null for {name}", code)
    return ""


async def _statuses(target: Target) -> str:
    cases = await _refusals(target)
    for name, (status, answer) in cases.items():
        require(answer.status == status, f"HTTP {status} for {name}", str(answer))
    codes = {"an unknown model": "model_not_found", "no key": "invalid_api_key", "a wrong key": "invalid_api_key"}
    for name, wanted in codes.items():
        if name in cases:
            found = cases[name][1].error.get("code")
            require(found == wanted, f"code {wanted} for {name}", found)
    bad = cases["a top_p of 7"][1]
    require(bad.error.get("type") == "invalid_request_error", "type invalid_request_error for HTTP 400", bad.text)
    notes = [] if target.options.api_key else ["401 not tried: no --api-key"]
    if _HUGE not in cases:
        notes.append("413 not tried: the server waits for a body that it need not take")
    if target.facts.context:
        answer = await _overflow(target)
        require(answer.status == 400, "HTTP 400 for an over-long prompt", str(answer))
        code = answer.error.get("code")
        require(code == "context_length_exceeded", "code context_length_exceeded for an over-long prompt", code)
    else:
        notes.append("over-long prompts not tried: the server does not say its length")
    return "; ".join(notes)


async def _overflow(target: Target) -> Answer:
    words = "word " * ((target.facts.context or 0) + 16)
    target.need_chat()
    return await target.ask("POST", CHAT, target.body({"messages": user(words), "max_tokens": _OVERFLOW_TOKENS}))


async def _retry_headers(target: Target) -> str:
    """Everything at once, which a server with bounded queues refuses in part."""
    fields = {**target.facts.endless, "max_tokens": 64}
    burst = (target.ask("POST", CHAT, target.body(fields)) for _ in range(target.options.concurrency))
    answers = await asyncio.gather(*burst)
    refused = [answer for answer in answers if answer.status in (429, 503)]
    if not refused:
        raise SkippedCheckError(f"none of {len(answers)} requests at once was refused with 429 or 503")
    for answer in refused:
        seconds = answer.headers.get("retry-after")
        finer = answer.headers.get("retry-after-ms")
        require(bool(seconds or finer), "retry-after or retry-after-ms on 429 and 503", dict(answer.headers))
        numbers = [one for one in (seconds, finer) if one is not None]
        require(all(re.fullmatch(r"\d+(\.\d+)?", one) for one in numbers), "a number of seconds to wait", numbers)
    broken = [answer for answer in answers if answer.status >= 500 and answer not in refused]
    for answer in broken:
        require(answer.headers.get("x-should-retry") == "false", "x-should-retry: false on a 5xx", str(answer))
    return f"{len(refused)} of {len(answers)} refused"


async def _midstream(target: Target) -> str:
    """The longest answer the model can give: what fails on the way must say so, what does not proves nothing."""
    room = (target.facts.context or 4096) - 256
    try:
        stream = await target.stream({**target.facts.endless, "max_tokens": max(64, min(4000, room))})
    except TimeoutError:
        raise SkippedCheckError("a long stream went on without failing until --timeout") from None
    check_failed_end(stream)
    if stream.error is None:
        raise SkippedCheckError(
            "nothing failed mid-stream; start the server so that long requests do (a deadline, say)"
        )
    return str(stream.error["error"].get("message", ""))


def check_failed_end(stream: Stream) -> None:
    """A stream ends with the end mark or with one error event, and never with both or neither."""
    failed = [i for i, item in enumerate(stream.objects) if "error" in item]
    if not failed:
        require(stream.is_done, "an error event or [DONE] at the end, no silent close", stream.text[-120:])
        return
    error = stream.objects[failed[0]]["error"]
    require(isinstance(error, dict) and bool(error.get("message")), "an error with a message", error)
    require(failed == [len(stream.objects) - 1], "one error event, the last one", stream.objects[failed[0] :])
    require(not stream.is_done, "no [DONE] after an error event", stream.text[-120:])
    reasons = [one.get("finish_reason") for item in stream.objects[:-1] for one in item.get("choices", ())]
    require(not any(reasons), "no finish_reason in a stream that failed", reasons[-2:])


async def _quota_headers(target: Target) -> str:
    answer = await target.ask("POST", CHAT, target.body({"max_tokens": 1}))
    found = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    if not found:
        raise SkippedCheckError("the server sends no x-ratelimit headers, so it has no quotas to tell of")
    kinds = {name.rpartition("-")[2] for name in found}
    require(kinds <= {"requests", "tokens"}, "quotas of requests and tokens", sorted(found))
    for kind in kinds:
        wanted = {f"x-ratelimit-{part}-{kind}" for part in _LIMITS}
        require(wanted <= set(found), f"limit, remaining and reset of {kind}", sorted(found))
        count = found[f"x-ratelimit-remaining-{kind}"]
        require(count.isdigit(), f"a number as remaining {kind}", count)
    return ", ".join(sorted(kinds))


async def _overflow_counts(target: Target) -> str:
    context = target.facts.context
    if not context:
        raise SkippedCheckError("the server does not say its length in /v1/models (max_model_len)")
    answer = await _overflow(target)
    require(answer.status >= 400, "a refusal of an over-long prompt", str(answer))
    message = str(answer.error.get("message") or answer.text)
    numbers = {int(one.replace(",", "").replace("_", "")) for one in re.findall(r"\d[\d,_]*", message)}
    require(context in numbers, f"the maximum, {context}, in the message", message)
    require(_OVERFLOW_TOKENS in numbers, f"the {_OVERFLOW_TOKENS} tokens asked for in the message", message)
    counts = [one for one in numbers if one > context - _OVERFLOW_TOKENS and one != context]
    require(bool(counts), "the number of prompt tokens in the message", message)
    return message


CHECKS = (
    Check("37", MUST, "every failing route answers {error: {message, type, param, code}}", _bodies),
    Check("38", MUST, "code is a string or null", _codes),
    Check(
        "39",
        MUST,
        "statuses and codes: 400, 401, 404, 405, 413, 415, context_length_exceeded, model_not_found",
        _statuses,
    ),
    Check("40", MUST, "429 and 503 say when to retry; other 5xx say not to", _retry_headers, is_slow=True),
    Check(
        "41", MUST, "a failure mid-stream is one error event and the end, without [DONE] or a finish_reason", _midstream
    ),
    Check("42", SHOULD, "quotas are told in x-ratelimit headers", _quota_headers),
    Check("43", MUST, "an overflow states prompt tokens, tokens asked for and the maximum", _overflow_counts),
)
