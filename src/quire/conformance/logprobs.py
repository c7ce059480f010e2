"""Section d, lines 24 to 28: log-probabilities of chat and plain completions."""

from __future__ import annotations

from quire.conformance.accumulate import logprob_entries
from quire.conformance.check import MUST, Check
from quire.conformance.events import JsonObject, Stream
from quire.conformance.outcome import SkippedCheckError, member, require
from quire.conformance.target import Target, user
from quire.conformance.tool_requests import REQUIRED, call_fields
from quire.conformance.usage import WITH_USAGE, counts_of

_ASKED: JsonObject = {"logprobs": True, "top_logprobs": 2}
_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_WIDE_CHARACTERS = "\N{EURO SIGN}\N{SLIGHTLY SMILING FACE}"


async def _chat_shape(target: Target) -> str:
    for count in (2, 0):
        choice = await _choice(target, {**_ASKED, "top_logprobs": count})
        logprobs = member(choice, "logprobs", dict, "choice")
        require("refusal" in logprobs, "the key refusal in logprobs", logprobs)
        entries = member(logprobs, "content", list, "logprobs")
        require(bool(entries), "entries in logprobs.content", logprobs)
        for entry in entries:
            _check_entry(entry)
            rivals = member(entry, "top_logprobs", list, "entry")
            require(len(rivals) <= count, f"at most {count} top_logprobs", rivals)
            require(bool(rivals) or count == 0, "top_logprobs as asked for", entry)
            for rival in rivals:
                _check_entry(rival)
    return ""


def _check_entry(entry: object) -> None:
    member(entry, "token", str, "entry")
    assert isinstance(entry, dict), "a member was found in it"
    logprob = entry.get("logprob")
    require(isinstance(logprob, int | float) and -9999 <= logprob <= 0, "a logprob from -9999 to 0", entry)
    require("bytes" in entry, "the key bytes in every entry", entry)
    data = entry["bytes"]
    is_bytes = isinstance(data, list) and all(isinstance(one, int) and 0 <= one <= 255 for one in data)
    require(data is None or is_bytes, "bytes to be null or a list of bytes", data)


async def _choice(target: Target, fields: JsonObject) -> JsonObject:
    choices = member(await target.chat(fields, may_lack=True), "choices", list, "answer")
    require(len(choices) == 1, "one choice", choices)
    choice: JsonObject = choices[0]
    return choice


async def _limits(target: Target) -> str:
    await target.chat({"logprobs": True, "top_logprobs": 20, "max_tokens": 2}, may_lack=True)
    await target.chat({"logprobs": True, "top_logprobs": 0, "max_tokens": 2})
    for fields in ({"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1}, {"top_logprobs": 2}):
        answer = await target.refused_chat(fields)
        require(answer.status == 400, f"HTTP 400 for {fields}", str(answer))
    return ""


async def _riding(target: Target) -> str:
    fields = {**target.facts.endless, **_ASKED, "max_tokens": 32}
    text = str(member(await _choice(target, fields), "message", dict, "choice").get("content") or "")
    held = {**fields, "stop": [text[-6:] + "\x7f"]} if len(text) > 6 else fields
    for asked in (fields, held):
        stream = await target.stream({**asked, **WITH_USAGE})
        _check_counted(stream)
        _check_ride(stream.choices(0))
    try:
        calls = await target.stream({**call_fields(REQUIRED), **_ASKED, **WITH_USAGE}, may_lack=True)
    except SkippedCheckError as reason:
        return f"tool calls not tried: {reason}"
    _check_counted(calls)
    return ""


def _check_counted(stream: Stream) -> None:
    """One entry per generated token; an end-of-text token may be counted and have none."""
    found = sum(len(logprob_entries(choice)) for choice in stream.choices(0))
    generated = counts_of(stream.chunks[-1])["completion_tokens"]
    reason = [choice["finish_reason"] for choice in stream.choices(0) if choice.get("finish_reason")][-1:]
    allowed = (generated,) if reason == ["length"] else (generated, generated - 1)
    require(found in allowed, f"every one of {generated} generated tokens exactly once", f"{found} entries")


def _check_ride(choices: list[JsonObject]) -> None:
    """Each chunk's entries spell its text, as far as the tokens of the whole answer spell the whole text."""
    texts = [str(choice["delta"].get("content") or "") for choice in choices]
    spelled = [_spelled(logprob_entries(choice)) for choice in choices]
    if "".join(texts).strip() != "".join(spelled).strip():
        return
    for text, own in zip(texts, spelled, strict=True):
        require(text.strip() == own.strip(), f"the entries of {text!r} on the chunk that carries it", own)


def _spelled(entries: list[JsonObject]) -> str:
    parts = (bytes(entry["bytes"]) if entry.get("bytes") is not None else entry["token"].encode() for entry in entries)
    return b"".join(parts).decode("utf-8", "replace")


async def _raw_bytes(target: Target) -> str:
    fields: JsonObject = {
        **target.facts.endless,
        **_ASKED,
        "max_tokens": 48,
        "messages": user(f"Say {_WIDE_CHARACTERS}"),
    }
    split = await _byte_tokens(target)
    if split:
        fields["logit_bias"] = {str(token): 100 for token in split}
    choice = await _choice(target, fields)
    entries = logprob_entries(choice)
    for entry in entries:
        _check_entry(entry)
    parts = [entry for entry in entries if entry["bytes"] is not None and not _is_text(bytes(entry["bytes"]))]
    text = str(member(choice, "message", dict, "choice").get("content") or "")
    if split:
        require(_spelled(entries) == text, f"raw bytes that spell the text {text!r}", _spelled(entries))
        require(bool(parts), "the raw bytes of tokens that are a part of a character", entries[:3])
    return f"{len(parts)} tokens were parts of characters"


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


async def _byte_tokens(target: Target) -> list[int]:
    """Ids that a server with a /tokenize route spells wide characters with, if it takes more than one for each."""
    body = {"model": target.facts.model, "prompt": _WIDE_CHARACTERS, "add_special_tokens": False}
    answer = await target.ask("POST", "/tokenize", body)
    tokens = answer.json.get("tokens") if answer.status == 200 else None
    is_split = isinstance(tokens, list) and len(tokens) > len(_WIDE_CHARACTERS) + 1
    return tokens if is_split and isinstance(tokens, list) else []


async def _plain_lists(target: Target) -> str:
    for echo in (False, True):
        fields = {"logprobs": 3, "echo": echo, "max_tokens": 6}
        choice = member(await target.complete(fields, may_lack=True), "choices", list, "answer")[0]
        logprobs = member(choice, "logprobs", dict, "choice")
        lists = [member(logprobs, name, list, "logprobs") for name in _LISTS]
        lengths = {name: len(one) for name, one in zip(_LISTS, lists, strict=True)}
        require(len(set(lengths.values())) == 1 and lists[0] != [], "parallel lists of one length", lengths)
        _, numbers, rivals, offsets = lists
        known = numbers[1:] if echo else numbers
        require(not echo or numbers[0] is None, "null as the logprob of the first echoed token", numbers[:2])
        require(all(isinstance(one, int | float) and one <= 0 for one in known), "logprobs of 0 or less", numbers)
        require(all(isinstance(one, dict) for one in rivals[echo:]), "objects as top_logprobs", rivals[:2])
        require(offsets == sorted(offsets), "text_offset that does not fall", offsets)
    answer = await target.ask("POST", "/v1/completions", target.plain_body({"logprobs": 6}))
    require(answer.status == 400, "HTTP 400 for logprobs: 6", str(answer))
    return ""


CHECKS = (
    Check(
        "24",
        MUST,
        "chat logprobs have content and refusal; entries have token, logprob, bytes, top_logprobs",
        _chat_shape,
    ),
    Check("25", MUST, "top_logprobs is 0 to 20 and needs logprobs: true", _limits),
    Check("26", MUST, "streamed entries ride on the chunk with their text, every token exactly once", _riding),
    Check("27", MUST, "bytes are a token's raw bytes, and no number is NaN or infinite", _raw_bytes),
    Check("28", MUST, "completions' logprobs are parallel lists; an echoed first token has null", _plain_lists),
)
