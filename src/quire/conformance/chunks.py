"""Section b, lines 8 to 18: the shape of chat chunks, stop strings, finish reasons, several choices."""

from __future__ import annotations

from quire.conformance.accumulate import REASONING, accumulate
from quire.conformance.check import MUST, SHOULD, Check
from quire.conformance.events import JsonObject
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import Target, user
from quire.conformance.tool_requests import NAMED, REQUIRED, call_fields

REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
_KNOWN_DELTA_KEYS = {"role", "content", "refusal", "tool_calls", "function_call", "audio", *REASONING}
_PROMPTS = (
    "Tell me a story about a lighthouse.",
    "Write ten emoji: \U0001f642\U0001f680\U0001f1eb\U0001f1f7",
    "名前を漢字で",
)


async def _identity(target: Target) -> str:
    chunks = (await target.stream({"stream_options": {"include_usage": True}})).chunks
    for chunk in chunks:
        require(
            member(chunk, "id", str, "chunk").startswith("chatcmpl-"), "an id that starts with chatcmpl-", chunk["id"]
        )
        require(chunk.get("object") == "chat.completion.chunk", "object chat.completion.chunk", chunk.get("object"))
        member(chunk, "created", int, "chunk")
        member(chunk, "choices", list, "chunk")
        require(chunk.get("model") == target.facts.model, f"model {target.facts.model}", chunk.get("model"))
        for key in ("id", "created"):
            require(chunk[key] == chunks[0][key], f"one {key} for all chunks", [chunks[0][key], chunk[key]])
    return ""


async def _choice_shape(target: Target) -> str:
    choices = (await target.stream({})).choices()
    for place, choice in enumerate(choices):
        member(choice, "index", int, "choice")
        member(choice, "delta", dict, "choice")
        require("finish_reason" in choice, "the key finish_reason in every choice", choice)
        logprobs = choice.get("logprobs")
        require(logprobs is None or isinstance(logprobs, dict), "logprobs to be null or an object", logprobs)
        if place < len(choices) - 1:
            require(choice["finish_reason"] is None, "finish_reason null until the end", choice)
    require(choices[-1]["finish_reason"] is not None, "a finish_reason at the end", choices[-1])
    return ""


async def _first_chunk(target: Target) -> str:
    first = (await target.stream({})).deltas()[0]
    require(first == {"role": "assistant", "content": ""}, 'a first delta {"role": "assistant", "content": ""}', first)
    return ""


async def _content_chunks(target: Target) -> str:
    wide = 0
    for prompt in _PROMPTS:
        fields = {"messages": user(prompt), "max_tokens": 48}
        text = await steady_text(target, fields)
        deltas = (await target.stream(fields)).deltas()
        for delta in deltas[1:]:
            if "content" in delta:
                require(set(delta) == {"content"}, "nothing but content in a content chunk", delta)
                require(delta["content"] != "", "no chunk for withheld text", delta)
        require(all(deltas[1:-1]), "no chunk that adds nothing before the finish chunk", deltas)
        streamed = "".join(delta.get("content") or "" for delta in deltas)
        require(streamed == text, f"the unstreamed text {text!r}", streamed)
        wide += sum(ord(character) > 127 for character in text)
    return f"{wide} characters of more than one byte"


async def steady_text(target: Target, fields: JsonObject) -> str:
    """The greedy text of a whole answer; raises SkippedCheckError when a second one differs."""
    texts = [await _text(target, fields) for _ in range(2)]
    if texts[0] != texts[1]:
        raise SkippedCheckError("two greedy answers differ (line 46), so a stream cannot be compared with one")
    return texts[0]


async def _text(target: Target, fields: JsonObject) -> str:
    (choice,) = member(await target.chat(fields), "choices", list, "answer")
    return member(choice, "message", dict, "choice").get("content") or ""


async def _stop_strings(target: Target) -> str:
    fields = {**target.facts.endless, "max_tokens": 48}
    text = await steady_text(target, fields)
    if len(text) < 20:
        raise SkippedCheckError(f"an answer of {len(text)} characters is too short to stop in")
    stop = text[9:16]
    wanted = text[: text.index(stop)]
    stream = await target.stream({**fields, "stop": [stop]})
    streamed = accumulate(stream)[0]
    require(streamed.content == wanted, f"the text before the stop string {stop!r}: {wanted!r}", streamed.content)
    require(streamed.finish_reason == "stop", "finish_reason stop", streamed.finish_reason)
    unmet = accumulate(await target.stream({**fields, "stop": [stop + "\x7f never said", text[-3:] + "\x7f"]}))[0]
    require(unmet.content == text, "held-back text that turned out to be no stop string to be sent", unmet.content)
    return ""


async def _finish_chunk(target: Target) -> str:
    for fields in ({}, {"max_tokens": 1}, {"stream_options": {"include_usage": True}}):
        check_finish((await target.stream(fields)).choices(0))
    return ""


def check_finish(choices: list[JsonObject]) -> None:
    """Exactly one finish chunk, alone and last, for one choice's chunks; raises FailedCheckError."""
    finished = [choice for choice in choices if choice.get("finish_reason") is not None]
    require(len(finished) == 1, "exactly one finish chunk", finished)
    require(finished[0].get("delta") == {}, "a finish chunk with an empty delta", finished[0])
    require(choices[-1] is finished[0], "nothing after the finish chunk", choices[-1])


async def _finish_reasons(target: Target) -> str:
    whole = await target.chat({})
    text = await _text(target, {**target.facts.endless, "max_tokens": 16})
    cases: list[JsonObject] = [{}, {"max_tokens": 1}]
    cases += [{**target.facts.endless, "max_tokens": 16, "stop": text[4:8]}] if len(text) > 8 else []
    found = [member(choice, "finish_reason", str, "choice") for choice in member(whole, "choices", list, "answer")]
    for fields in cases:
        found += [str(reply.finish_reason) for reply in accumulate(await target.stream(fields)).values()]
    require(set(found) <= set(REASONS), f"a finish_reason of {', '.join(REASONS)}", found)
    if target.facts.endless:
        wanted = ["length", *["stop"] * (len(cases) - 2)]
        require(found[2:] == wanted, f"{wanted} for a limit of one token and a stop string", found[2:])
    return ", ".join(dict.fromkeys(found))


async def _call_reasons(target: Target) -> str:
    for choice, wanted in ((REQUIRED, "tool_calls"), (NAMED, "stop")):
        fields = call_fields(choice)
        whole = await target.chat(fields, may_lack=True)
        stream = await target.stream(fields, may_lack=True)
        found = [member(whole, "choices", list, "answer")[0].get("finish_reason"), accumulate(stream)[0].finish_reason]
        if "length" in found:
            raise SkippedCheckError(f"the model did not finish a call in {fields['max_tokens']} tokens")
        require(found == [wanted] * 2, f"finish_reason {wanted} under tool_choice {choice!r}", found)
    cut = await target.chat({**call_fields(REQUIRED), "max_tokens": 2})
    reason = member(cut, "choices", list, "answer")[0].get("finish_reason")
    require(reason == "length", "finish_reason length for a call that was cut", reason)
    return ""


async def _several(target: Target) -> str:
    stream = await target.stream({"n": 3, "temperature": 1}, may_lack=True)
    indices = {choice.get("index") for choice in stream.choices()}
    require(indices == {0, 1, 2}, "the indices 0, 1 and 2 for n = 3", sorted(map(str, indices)))
    for index in range(3):
        deltas = stream.deltas(index)
        roles = [delta["role"] for delta in deltas if delta.get("role")]
        require(roles == ["assistant"] and "role" in deltas[0], f"one role, first, for choice {index}", deltas[:2])
        check_finish(stream.choices(index))
    return ""


async def _fingerprint(target: Target) -> str:
    streams = [await target.stream({}) for _ in range(2)]
    found = {str(chunk.get("system_fingerprint") or "") for stream in streams for chunk in stream.chunks}
    require(len(found) == 1 and found != {""}, "one system_fingerprint in all chunks of two streams", sorted(found))
    unasked = [chunk for chunk in streams[0].chunks if chunk.get("service_tier") is not None]
    require(not unasked, "no service_tier unless it is used", unasked[:1])
    return found.pop()


async def _additive(target: Target) -> str:
    deltas = (await target.stream({"logprobs": None})).deltas()
    repeated = [key for key in {key for delta in deltas for key in delta} if sum(key in delta for delta in deltas) > 1]
    unknown = sorted(set(repeated) - _KNOWN_DELTA_KEYS)
    require(not unknown, "no unknown key of a delta that repeats, since clients add it up", unknown)
    require("role" not in repeated, "the role in one delta only, since clients concatenate it", deltas[:3])
    return ""


CHECKS = (
    Check("8", MUST, "every chunk has id, object, created, model and choices, the same in all", _identity),
    Check("9", MUST, "every choice has index, delta and finish_reason, which is null until the end", _choice_shape),
    Check("10", MUST, "the first chunk of a choice is the role and an empty content", _first_chunk),
    Check(
        "11",
        MUST,
        "content chunks carry only content, none is empty, together they are the unstreamed text",
        _content_chunks,
    ),
    Check("12", MUST, "what may begin a stop string is held back, and a stop string is never sent", _stop_strings),
    Check("13", MUST, "one finish chunk per choice, with an empty delta, after the last content", _finish_chunk),
    Check("14", MUST, "finish_reason is one of OpenAI's", _finish_reasons),
    Check("15", MUST, "tool_calls after called tools, stop after a forced function, length when cut", _call_reasons),
    Check("16", MUST, "with n > 1 every choice has its own role and finish chunk", _several),
    Check("17", SHOULD, "system_fingerprint is constant; service_tier is echoed only if used", _fingerprint),
    Check("18", SHOULD, "nothing in a delta repeats that clients would add up", _additive),
)
