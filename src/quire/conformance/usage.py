"""Section c, lines 19 to 23: what an answer says it cost."""

from __future__ import annotations

from quire.conformance.check import MUST, Check
from quire.conformance.events import JsonObject
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.server_metrics import counts_prefix_hits
from quire.conformance.target import Target, user

_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
WITH_USAGE: JsonObject = {"stream_options": {"include_usage": True}}


def counts_of(answer: JsonObject) -> JsonObject:
    """The usage of an answer or a chunk, its three counts checked; raises FailedCheckError."""
    usage: JsonObject = member(answer, "usage", dict, "answer")
    prompt, completion, total = (member(usage, name, int, "usage") for name in _COUNTS)
    require(total == prompt + completion, f"total_tokens {prompt} + {completion}", total)
    return usage


async def _whole(target: Target) -> str:
    usage = counts_of(await target.chat({}))
    require(usage["prompt_tokens"] > 0, "prompt_tokens above 0", usage)
    return ""


async def _streamed(target: Target) -> str:
    plain = (await target.stream({})).chunks
    unasked = [chunk for chunk in plain if chunk.get("usage") is not None or chunk.get("choices") == []]
    require(not unasked, "no usage that include_usage did not ask for", unasked[:1])
    chunks = (await target.stream(WITH_USAGE)).chunks
    require(chunks[-1].get("choices") == [], "a last chunk with choices: [] that carries usage", chunks[-1])
    streamed, whole = counts_of(chunks[-1]), counts_of(await target.chat({}))
    for name in _COUNTS:
        require(streamed[name] == whole[name], f"{name} {whole[name]} as unstreamed", streamed[name])
    finished = [i for i, chunk in enumerate(chunks) if any(one.get("finish_reason") for one in chunk["choices"])]
    require(finished == [len(chunks) - 2], "the usage chunk right after the finish chunk", chunks[-3:])
    return ""


async def _no_partial(target: Target) -> str:
    chunks = (await target.stream(WITH_USAGE)).chunks
    partial = [chunk for chunk in chunks if chunk.get("usage") is not None and chunk.get("choices") != []]
    require(not partial, "usage null or absent in every chunk with choices", partial[:1])
    return ""


async def _options_without_stream(target: Target) -> str:
    answer = await target.refused_chat(WITH_USAGE)
    require(answer.status == 400, "HTTP 400 for stream_options without stream", answer.status)
    require(answer.error.get("param") == "stream_options", "param stream_options", answer.text)
    return ""


async def _details(target: Target) -> str:
    notes = [await _cached(target), await _samples(target)]
    return "; ".join(note for note in notes if note)


async def _cached(target: Target) -> str:
    """The same long prompt twice: whoever knows what came from a cache says so."""
    fields = {"messages": user("The sea is wide and the night is long. " * 16), "max_tokens": 1}
    found = [counts_of(await target.chat(fields)) for _ in range(2)][1]
    details = found.get("prompt_tokens_details")
    if details is None:
        require(not await counts_prefix_hits(target), "prompt_tokens_details, since /metrics knows prefix hits", found)
        return "no cached_tokens, and nothing shows that they are known"
    cached = member(details, "cached_tokens", int, "prompt_tokens_details")
    require(0 <= cached <= found["prompt_tokens"], f"0 to {found['prompt_tokens']} cached_tokens", cached)
    reasoning = (found.get("completion_tokens_details") or {}).get("reasoning_tokens")
    require(reasoning is None or isinstance(reasoning, int), "an integer as reasoning_tokens", reasoning)
    return f"{cached} of {found['prompt_tokens']} tokens cached"


async def _samples(target: Target) -> str:
    fields = {**target.facts.endless, "max_tokens": 8, "temperature": 1}
    one = counts_of(await target.chat(fields))
    try:
        three = counts_of(await target.chat({**fields, "n": 3}, may_lack=True))
    except SkippedCheckError as reason:
        return f"n = 3 not tried: {reason}"
    require(three["prompt_tokens"] == one["prompt_tokens"], f"the prompt's {one['prompt_tokens']} tokens once", three)
    if target.facts.endless:
        require(three["completion_tokens"] == 24, "completion_tokens summed over three choices: 3 x 8", three)
        require(one["completion_tokens"] == 8, "8 completion_tokens for an answer cut at 8", one)
    return ""


CHECKS = (
    Check("19", MUST, "usage has prompt_tokens, completion_tokens and their sum", _whole),
    Check("20", MUST, "a stream has usage only if asked, in one chunk with choices [] before [DONE]", _streamed),
    Check("21", MUST, "no other chunk carries partial numbers", _no_partial),
    Check("22", MUST, "stream_options without stream is a 400 that names it", _options_without_stream),
    Check("23", MUST, "cached_tokens are told when known; n > 1 counts the prompt once and sums the samples", _details),
)
