"""Answers in OpenAI's shapes, made of drafts: whole ones, and the chunks of streams, the usage chunk included."""

import json

CREATED = 1_700_000_000
FINGERPRINT = "fp_fake"


class Replies:
    """Makes everything that answers one chat or completion request; ids come from outside."""

    def __init__(self, fields, drafts, *, prompt_tokens, cached_tokens, number):
        self.fields, self.drafts = fields, drafts
        self.is_chat = "messages" in fields
        self.number = number
        completion = sum(draft.num_tokens for draft in drafts)
        self.usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def _frame(self, kind, choices):
        name = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{name}-{self.number}",
            "object": kind,
            "created": CREATED,
            "model": self.fields.get("model", "fake-org/fake-model"),
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def whole(self):
        make = self._chat_choice if self.is_chat else self._plain_choice
        choices = [make(index, draft) for index, draft in enumerate(self.drafts)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._frame(kind, choices), "usage": self.usage}

    def _chat_choice(self, index, draft):
        message = {"role": "assistant", "content": draft.text, "refusal": None}
        if draft.calls:
            message["content"] = None
            message["tool_calls"] = [self._call(index, place, draft) for place in range(len(draft.calls))]
        tokens = [token for piece in draft.pieces for token in piece.tokens]
        logprobs = self._chat_logprobs(tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": draft.reason}

    def _call(self, index, place, draft):
        function = {"name": draft.calls[place], "arguments": draft.arguments(place)}
        return {"id": self._call_id(index, place), "type": "function", "function": function}

    def _call_id(self, index, place):
        return f"call{self.number:03}{index}{place}"

    def _plain_choice(self, index, draft):
        echo = self.fields["prompt"] if self.fields.get("echo") else ""
        tokens = [token for piece in draft.pieces for token in piece.tokens]
        logprobs = self._lists(echo, tokens) if self.fields.get("logprobs") is not None else None
        return {"index": index, "text": echo + draft.text, "logprobs": logprobs, "finish_reason": draft.reason}

    def _lists(self, echo, tokens):
        texts = [*([echo] if echo else []), *(token.decode("utf-8", "replace") for token in tokens)]
        numbers = [None if echo and not i else -0.5 for i in range(len(texts))]
        rivals = [None if number is None else {text: number} for text, number in zip(texts, numbers, strict=True)]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {"tokens": texts, "token_logprobs": numbers, "top_logprobs": rivals, "text_offset": offsets}

    def _chat_logprobs(self, tokens):
        if not self.fields.get("logprobs"):
            return None
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, token):
        rivals = [_candidate(token, -0.5), _candidate(b" or", -1.5)]
        rivals += [_candidate(b"rare%d" % i, -9999.0) for i in range(18)]
        return {**_candidate(token, -0.5), "top_logprobs": rivals[: self.fields.get("top_logprobs", 0)]}

    def chunks(self):
        """Every event of a stream that goes well."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        make = self._chat_parts if self.is_chat else self._plain_parts
        lanes = [make(index, draft) for index, draft in enumerate(self.drafts)]
        asked = (self.fields.get("stream_options") or {}).get("include_usage")
        found = []
        for step in range(max(map(len, lanes))):  # choices take turns, as they do in an engine
            found += [self._frame(kind, [lane[step]]) for lane in lanes if step < len(lane)]
        if asked:
            found = [{**chunk, "usage": None} for chunk in found] + [{**self._frame(kind, []), "usage": self.usage}]
        return found

    def _chat_parts(self, index, draft):
        parts = [self._part(index, {"role": "assistant", "content": None if draft.calls else ""})]
        for place, name in enumerate(draft.calls):
            first = {"name": name, "arguments": ""}
            call = {"index": place, "id": self._call_id(index, place), "type": "function", "function": first}
            parts.append(self._part(index, {"tool_calls": [call]}))
            pieces = [piece for piece in draft.pieces if piece.call == place]
            for piece in pieces:
                fragment = {"index": place, "function": {"arguments": piece.text}}
                parts.append(self._part(index, {"tool_calls": [fragment]}, piece.tokens))
        texts = [piece for piece in draft.pieces if piece.call is None]
        parts += [self._part(index, {"content": piece.text}, piece.tokens) for piece in texts if piece.text]
        behind = [token for piece in texts if not piece.text for token in piece.tokens]
        return [*parts, {**self._part(index, {}, behind), "finish_reason": draft.reason}]

    def _part(self, index, delta, tokens=()):
        logprobs = self._chat_logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _plain_parts(self, index, draft):
        part = {"index": index, "logprobs": None, "finish_reason": None}
        parts = [{**part, "text": piece.text} for piece in draft.pieces]
        return [*parts, {**part, "text": "", "finish_reason": draft.reason}]


def _candidate(token, logprob):
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}


def event(payload):
    """One event of a stream."""
    return (
        b"data: "
        + (payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)).encode()
        + b"\n\n"
    )
