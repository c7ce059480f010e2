"""Section g, lines 52 to 54: plain completions, embeddings, and the Responses and Messages routes."""

from __future__ import annotations

import base64
import struct

from quire.conformance.check import SHOULD, Check
from quire.conformance.events import JsonObject
from quire.conformance.messages_api import examine_messages
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.responses_api import examine_responses
from quire.conformance.target import COMPLETIONS, Target, says_it_lacks, succeeded

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
    notes = [await examine_responses(target), await examine_messages(target)]
    if all(note.startswith("no ") for note in notes):
        raise SkippedCheckError(", ".join(notes))
    return ", ".join(notes)


CHECKS = (
    Check("52", SHOULD, "completions take texts and ids, one or many; n, echo, stream, suffix or 400", _completions),
    Check("53", SHOULD, "embeddings of texts and ids, as floats and in base64", _embeddings),
    Check(
        "54",
        SHOULD,
        "/v1/responses and /v1/messages: answers, streams, calls and errors in their own shapes",
        _adapters,
    ),
)
