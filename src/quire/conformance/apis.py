"""Section g, lines 52 to 54: plain completions, embeddings, and the Responses and Messages routes."""

from __future__ import annotations

import base64
import struct

from quire.conformance.check import SHOULD, Check
from quire.conformance.events import JsonObject
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import COMPLETIONS, Target, says_it_lacks, succeeded, user

_EMBEDDINGS = "/v1/embeddings"
_TOKENS = [11, 12, 13]


async def _completions(target: Target) -> str:
    prompts = {
        "a string": "Once",
        "a list of strings": ["Once", "The"],
        "token ids": _TOKENS,
        "lists of ids": [_TOKENS] * 2,
    }
    for name, prompt in prompts.items():
        answer = await target.ask("POST", COMPLETIONS, target.plain_body({"prompt": prompt, "max_tokens": 4, "n": 2}))
        choices = member(succeeded(answer, asked={"prompt": prompt, "n": 2}), "choices", list, "answer")
        wanted = list(range(4 if name in ("a list of strings", "lists of ids") else 2))
        found = [choice.get("index") for choice in choices]
        require(found == wanted, f"indices {wanted} for {name} and n: 2", found)
        require(answer.json.get("object") == "text_completion", "object text_completion", answer.json.get("object"))
    echoed = await target.complete({"prompt": "Once upon", "echo": True, "max_tokens": 2})
    text = member(member(echoed, "choices", list, "answer")[0], "text", str, "choice")
    require(text.startswith("Once upon"), "echo to begin with the prompt", text)
    await _check_plain_stream(target)
    suffix = await target.ask("POST", COMPLETIONS, target.plain_body({"suffix": " The end."}))
    require(suffix.status in (200, 400), "suffix to be honoured or refused with 400", str(suffix))
    return "suffix is taken" if suffix.status == 200 else "suffix is refused"


async def _check_plain_stream(target: Target) -> None:
    fields = {"prompt": ["Once", "The"], "n": 2, "max_tokens": 6}
    whole = await target.complete(fields)
    stream = await target.stream_plain(fields)
    for chunk in stream.chunks:
        require(chunk.get("object") == "text_completion", "chunks that are text_completion objects", chunk)
    for expected in member(whole, "choices", list, "answer"):
        parts = stream.choices(expected["index"])
        text = "".join(member(part, "text", str, "choice") for part in parts)
        require(text == expected["text"], f"the text of choice {expected['index']}: {expected['text']!r}", text)
        reasons = [part["finish_reason"] for part in parts if part.get("finish_reason")]
        require(reasons == [expected["finish_reason"]], "one finish per choice", reasons)


async def _embed(target: Target, fields: JsonObject) -> list[JsonObject]:
    """The entries of an answer; raises SkippedCheckError where the model does not embed."""
    answer = await target.ask("POST", _EMBEDDINGS, {"model": target.facts.model, **fields})
    if answer.status in (404, 405) or says_it_lacks(answer):
        raise SkippedCheckError(f"the server has no embeddings: {answer}")
    data = member(succeeded(answer, asked=fields), "data", list, "answer")
    require([item.get("index") for item in data] == list(range(len(data))), "indices in order", data)
    return data


async def _embeddings(target: Target) -> str:
    (one,) = await _embed(target, {"input": "Once", "encoding_format": "float"})
    vector = member(one, "embedding", list, "entry")
    many = await _embed(target, {"input": ["Once", "The sea"], "encoding_format": "float"})
    require(
        len(many) == 2 and _are_close(many[0]["embedding"], vector), "one vector per text, the same alone", len(many)
    )
    tokens = await _embed(target, {"input": [_TOKENS, _TOKENS], "encoding_format": "float"})
    require(len(tokens) == 2, "one vector per list of ids", len(tokens))
    (packed,) = await _embed(target, {"input": "Once", "encoding_format": "base64"})
    data = base64.b64decode(member(packed, "embedding", str, "entry in base64"))
    unpacked = list(struct.unpack(f"<{len(data) // 4}f", data))
    require(_are_close(unpacked, vector), "the same numbers in base64, as little-endian float32", unpacked[:4])
    short = await target.ask("POST", _EMBEDDINGS, {"model": target.facts.model, "input": "Once", "dimensions": 2})
    require(short.status in (200, 400), "dimensions to be honoured or refused with 400", str(short))
    size = len(vector) if short.status != 200 else len(member(short.json["data"][0], "embedding", list, "entry"))
    require(short.status != 200 or size == 2, "2 dimensions as asked for", size)
    return f"{len(vector)} dimensions"


def _are_close(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))


async def _adapters(target: Target) -> str:
    notes = [await _responses(target), await _anthropic(target)]
    if all(note.startswith("no ") for note in notes):
        raise SkippedCheckError(", ".join(notes))
    return ", ".join(notes)


async def _responses(target: Target) -> str:
    body = {"model": target.facts.model, "input": "Hello!", "max_output_tokens": 16}
    answer = await target.ask("POST", "/v1/responses", body)
    if answer.status in (404, 405):
        return "no /v1/responses"
    result = succeeded(answer)
    require(result.get("object") == "response", "object response", result)
    require(result.get("status") in ("completed", "incomplete"), "status completed or incomplete", result.get("status"))
    messages = [one for one in member(result, "output", list, "response") if one.get("type") == "message"]
    require(bool(messages), "a message in output", result["output"])
    texts = [part.get("type") for part in member(messages[0], "content", list, "message")]
    require(texts == ["output_text"], "one part of type output_text", texts)
    member(member(result, "usage", dict, "response"), "input_tokens", int, "usage")
    return "/v1/responses"


async def _anthropic(target: Target) -> str:
    body = {"model": target.facts.model, "max_tokens": 16, "messages": user("Hello!")}
    headers = {**target.key_headers, "anthropic-version": "2023-06-01"}
    answer = await target.ask("POST", "/v1/messages", body, headers=headers)
    if answer.status in (404, 405):
        return "no /v1/messages"
    result = succeeded(answer)
    require(result.get("type") == "message" and result.get("role") == "assistant", "a message of the assistant", result)
    parts = member(result, "content", list, "message")
    require(all(part.get("type") == "text" for part in parts), "parts of type text", parts)
    reason = result.get("stop_reason")
    require(reason in ("end_turn", "max_tokens", "stop_sequence"), "a stop_reason of Anthropic's", reason)
    member(member(result, "usage", dict, "message"), "input_tokens", int, "usage")
    return "/v1/messages"


CHECKS = (
    Check("52", SHOULD, "completions take texts and ids, one or many; n, echo, stream, suffix or 400", _completions),
    Check("53", SHOULD, "embeddings of texts and ids, as floats and in base64", _embeddings),
    Check("54", SHOULD, "/v1/responses and /v1/messages answer in their own shapes", _adapters),
)
