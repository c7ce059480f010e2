"""Faults of streams: each changes the list of chunks that a stream is made of, by the line that it breaks."""

import copy
import itertools

from fake_replies import CREATED

_DRIFT = itertools.count(1)


def _choices(chunks):
    return [choice for chunk in chunks for choice in chunk["choices"]]


def _each(change):
    """A fault that changes every chunk in place."""

    def apply(chunks):
        for number, chunk in enumerate(chunks):
            change(number, chunk)
        return chunks

    return apply


def _each_choice(change):
    """A fault that changes every choice in place."""

    def apply(chunks):
        for choice in _choices(chunks):
            change(choice)
        return chunks

    return apply


def _each_call(change):
    """A fault that changes every entry of a delta's tool_calls in place."""

    def apply(chunks):
        for choice in _choices(chunks):
            for call in choice.get("delta", {}).get("tool_calls") or ():
                change(call)
        return chunks

    return apply


def _finish_with_content(chunks):
    """The last content and the finish reason in one chunk."""
    finish = next(i for i, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0].get("finish_reason"))
    chunks[finish - 1]["choices"][0]["finish_reason"] = chunks[finish]["choices"][0]["finish_reason"]
    return chunks[:finish] + chunks[finish + 1 :]


def _twice_finished(chunks):
    place = next(i for i, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0].get("finish_reason"))
    return [*chunks[: place + 1], copy.deepcopy(chunks[place]), *chunks[place + 1 :]]


def _content_after_finish(chunks):
    late = copy.deepcopy(chunks[0])
    late["choices"][0]["delta"] = {"content": "!"}
    place = next(i for i, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0].get("finish_reason"))
    return [*chunks[: place + 1], late, *chunks[place + 1 :]]


def _torn_character(choice):
    if "\N{SLIGHTLY SMILING FACE}" in choice["delta"].get("content", ""):
        choice["delta"]["content"] = "\N{REPLACEMENT CHARACTER}" * 2


def _empty_chunk(chunks):
    empty = copy.deepcopy(chunks[0])
    empty["choices"][0]["delta"] = {"content": ""}
    return [chunks[0], empty, *chunks[1:]]


def _change_delta(key, value):
    def change(choice):
        if "content" in choice["delta"]:
            choice["delta"][key] = value

    return change


def _role_once(choice):
    if choice["index"]:
        choice["delta"].pop("role", None)


def change_reason(old, new):
    def change(choice):
        if choice.get("finish_reason") == old:
            choice["finish_reason"] = new

    return change


def _running_usage(number, chunk):
    if chunk["choices"] and "usage" in chunk:
        chunk["usage"] = {"prompt_tokens": 3, "completion_tokens": number, "total_tokens": 3 + number}


def _unasked_usage(chunks):
    usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    return chunks if not chunks[-1]["choices"] else [*chunks, {**chunks[-1], "choices": [], "usage": usage}]


def _usage_with_finish(chunks):
    if chunks[-1]["choices"]:
        return chunks
    chunks[-2]["usage"] = chunks[-1]["usage"]
    return chunks[:-1]


def _late_logprobs(chunks):
    """Every entry on the finish chunk."""
    entries = []
    for choice in _choices(chunks):
        entries += (choice["logprobs"] or {"content": []})["content"]
        choice["logprobs"] = None
        if choice["finish_reason"] and entries:
            choice["logprobs"] = {"content": entries, "refusal": None}
    return chunks


def _first_logprob_only(choice):
    if choice["logprobs"]:
        del choice["logprobs"]["content"][1:]


def _doubled_logprobs(choice):
    if choice["logprobs"]:
        choice["logprobs"]["content"] *= 2


def _lost_call_logprobs(choice):
    if "tool_calls" in choice["delta"]:
        choice["logprobs"] = None


def _repeated_id(call):
    call.setdefault("id", "call_again")


def _repeated_name(call):
    call["function"].setdefault("name", "get_weather")


def _missing_first_arguments(call):
    if "id" in call:
        del call["function"]["arguments"]


def _shift_index(call):
    call["index"] += 1


def _unstable_id(call):
    call["id"] = call.get("id", "") + f"x{next(_DRIFT)}"


def _broken_fragments(call):
    call["function"]["arguments"] = call["function"]["arguments"].replace("}", "")


def no_empty_object(call):
    if call["function"]["arguments"] == "{}":
        call["function"]["arguments"] = ""


def _leaking(chunks):
    if any("tool_calls" in choice.get("delta", {}) for choice in _choices(chunks)):
        leak = copy.deepcopy(chunks[0])
        leak["choices"][0]["delta"] = {"content": "<tool_call>"}
        return [chunks[0], leak, *chunks[1:]]
    return chunks


CHUNK_FAULTS = {
    "8:id": _each(lambda number, chunk: chunk.update(id=f"chatcmpl-{number}")),
    "8:prefix": _each(lambda number, chunk: chunk.update(id="abc")),
    "8:created": _each(lambda number, chunk: chunk.update(created=CREATED + 0.5)),
    "8:model": _each(lambda number, chunk: chunk.update(model="another")),
    "8:object": _each(lambda number, chunk: chunk.update(object="chat.completion")),
    "9:finish_reason": _each_choice(lambda choice: choice["finish_reason"] or choice.pop("finish_reason")),
    "9:index": _each_choice(lambda choice: choice.update(index=str(choice["index"]))),
    "9:logprobs": _each_choice(lambda choice: choice.update(logprobs=[])),
    "10:role": _each_choice(lambda choice: choice["delta"].pop("role", None)),
    "10:content": _each_choice(lambda choice: "role" in choice["delta"] and choice["delta"].pop("content")),
    "11:torn": _each_choice(_torn_character),
    "11:empty": _empty_chunk,
    "11:more": _each_choice(_change_delta("refusal", None)),
    "11:different": _each_choice(_change_delta("content", "a")),
    "13:coalesced": _finish_with_content,
    "13:twice": _twice_finished,
    "13:after": _content_after_finish,
    "14:own": _each_choice(change_reason("stop", "eos_token")),
    "14:limit": _each_choice(change_reason("length", "stop")),
    "15:stream": _each_choice(change_reason("tool_calls", "stop")),
    "16:role": _each_choice(_role_once),
    "16:one": lambda chunks: [chunk for chunk in chunks if all(choice["index"] < 2 for choice in chunk["choices"])],
    "17:random": _each(lambda number, chunk: chunk.update(system_fingerprint=str(number))),
    "17:tier": _each(lambda number, chunk: chunk.update(service_tier="default")),
    "18:number": _each_choice(_change_delta("token_id", 5)),
    "18:role": _each_choice(_change_delta("role", "assistant")),
    "20:unasked": _unasked_usage,
    "20:with_finish": _usage_with_finish,
    "21:running": _each(_running_usage),
    "26:late": _late_logprobs,
    "26:lost": _each_choice(_first_logprob_only),
    "26:doubled": _each_choice(_doubled_logprobs),
    "26:calls": _each_choice(_lost_call_logprobs),
    "30:id": _each_call(_repeated_id),
    "30:name": _each_call(_repeated_name),
    "30:arguments": _each_call(_missing_first_arguments),
    "31:missing": _each_call(lambda call: call.pop("index")),
    "31:start": _each_call(_shift_index),
    "32:broken": _each_call(_broken_fragments),
    "32:empty": _each_call(no_empty_object),
    "33:unstable": _each_call(_unstable_id),
    "35:stream": _leaking,
    "h1:text": _each_choice(_change_delta("content", "a")),
    "h1:reason": _each_choice(change_reason("stop", "length")),
    "h2:empty": _each_choice(lambda choice: choice["delta"].pop("content", None)),
    "52:index": _each_choice(lambda choice: "text" in choice and choice.update(index=0)),
    "52:object": _each(lambda number, chunk: chunk.update(object="text")),
}
