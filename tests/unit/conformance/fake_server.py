"""A server that fulfils every line of the checklist, or breaks the one it is told to: routes, limits and streams.

async with FakeServer("13:coalesced") as server:
    ... server.url
"""

import asyncio
import base64
import contextlib
import json
import struct

from fake_adapters import (
    EVENT_FAULTS,
    WHOLE_FAULTS,
    anthropic_refusal,
    encoded,
    message,
    message_events,
    response,
    response_events,
)
from fake_faults import BODY_FAULTS, CHUNK_FAULTS, EVERY_FAULT, REFUSAL_FAULTS, REQUEST_FAULTS
from fake_http import Connection, RefusalError, refuse
from fake_model import CONTEXT, calls_of, count_prompt, draft, tokenize
from fake_replies import CREATED, Replies, event

MODEL = "fake-org/fake-model"
KEY = "secret"
CHAT_FIELDS = {
    *(
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "n",
        "stop",
        "stream",
    ),
    *(
        "stream_options",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "ignore_eos",
    ),
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "response_format", "store", "metadata", "user"),
    *("safety_identifier", "prompt_cache_key", "verbosity", "service_tier", "moderation", "prediction"),
}
ROLES = ("developer", "system", "user", "assistant", "tool")
PACED_TOKENS = 64
"""Answers that may be this long are made with pauses, so that they can be seen arriving and left."""


class FakeServer:
    """Serves on a free port of the loopback interface while its context is open."""

    def __init__(self, *faults, fail_after=600, max_running=None, prefill_seconds=0.0, keep_alive=0.1):
        assert set(faults) <= EVERY_FAULT, faults
        self.faults = faults
        self.fail_after, self.max_running = fail_after, max_running
        self.prefill_seconds, self.keep_alive = prefill_seconds, keep_alive
        self.running, self.generated, self.number = 0, 0, 0
        self.url = ""

    def has(self, fault):
        assert fault in EVERY_FAULT, fault
        return fault in self.faults

    async def __aenter__(self):
        self._tasks, self._writers = set(), []
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**24, backlog=2048)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        # One that is cancelled before it begins ends so, and has closed nothing.
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _accept(self, reader, writer):
        self._writers.append(writer)
        self._tasks.add(asyncio.create_task(self._serve(Connection(reader, writer))))

    async def _serve(self, connection):
        try:
            await self._exchange(connection)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, which some checks do on purpose, or the test is over
        finally:
            connection.writer.close()

    async def _exchange(self, connection):
        request = await connection.head()
        if request is None:
            return
        self.number += 1
        connection.request_id = "req" if self.has("6:same") else f"req-{self.number}"
        try:
            self._check_key(request)
            await connection.read_body(request)
            await self._route(connection, request)
        except RefusalError as refusal:
            for fault in self.faults:
                if fault in REFUSAL_FAULTS:
                    REFUSAL_FAULTS[fault](refusal)
            if self.has("6:error"):
                connection.request_id = ""
            await connection.answer(refusal.status, refusal.body, refusal.headers)

    def _check_key(self, request):
        if request.method == "OPTIONS" and not self.has("50:options"):
            return
        shown = [request.headers.get("authorization", "").removeprefix("Bearer ")]
        if not self.has("50:x-api-key"):
            shown.append(request.headers.get("x-api-key"))
        if KEY not in shown and not self.has("50:open"):
            raise refuse(401, "no key, or a wrong one", code="invalid_api_key")

    async def _route(self, connection, request):
        routes = {
            "/v1/chat/completions": self._generate,
            "/v1/completions": self._generate,
            "/v1/embeddings": self._embed,
            "/v1/responses": self._respond,
            "/v1/messages": self._respond,
            "/tokenize": self._tokenize,
        }
        if request.method == "OPTIONS":
            await connection.answer(204, b"", {"Access-Control-Allow-Origin": "*"})
        elif request.path in routes:
            if request.method != "POST":
                raise refuse(405, "this route does not take that method", code="method_not_allowed")
            await routes[request.path](connection, request, _fields(request))
        elif request.path == "/metrics":
            page = f"quire:num_requests_running {self.running}\nquire:generation_tokens_total {self.generated}\n"
            await connection.answer(200, (page + "quire:prefix_cache_hits_total 1\n").encode(), kind="text/plain")
        else:
            await self._models(connection, request.path)

    async def _models(self, connection, path):
        names = [MODEL, "alias"] if self.has("49:alias") else [MODEL]
        cards = {name: {"id": name, "object": "model", "created": CREATED, "owned_by": "fake"} for name in names}
        if self.has("51:card"):
            del cards[MODEL]["owned_by"]
        cards[MODEL]["max_model_len"] = CONTEXT
        name = path.removeprefix("/v1/models/")
        if path == "/v1/models":
            await connection.answer(200, {"object": "list", "data": list(cards.values())})
        elif name in cards and not (self.has("51:slash") and "/" in name):
            await connection.answer(200, cards[name])
        else:
            raise refuse(404, "no such route or model", code="not_found")

    async def _tokenize(self, connection, _, fields):
        await connection.answer(200, {"tokens": tokenize(fields["prompt"])})

    async def _respond(self, connection, request, fields):
        is_message = request.path.endswith("messages")
        if fields["model"] != MODEL and not self.has("54:refusal"):
            if is_message and not self.has("54:error"):
                raise RefusalError(404, anthropic_refusal(fields))
            raise refuse(404, "no such model", code="model_not_found", param="model")
        if fields.get("stream"):
            await self._respond_in_events(connection, message_events(fields) if is_message else response_events(fields))
            return
        body = message(fields) if is_message else response(fields)
        for fault in self.faults:
            WHOLE_FAULTS.get(fault, lambda _: None)(body)
        await connection.answer(200, body)

    async def _respond_in_events(self, connection, events):
        for fault in self.faults:
            events = EVENT_FAULTS.get(fault, lambda events: events)(events)
        kind = "application/json" if self.has("54:type") else "text/event-stream"
        connection.open_stream({"Content-Type": kind})
        await connection.send(encoded(events, is_misnamed=self.has("54:name"), is_marked=self.has("54:mark")))
        await connection.send(b"")

    async def _embed(self, connection, _, fields):
        given = fields["input"]
        count = 1 if isinstance(given, str) or isinstance(given[0], int) else len(given)
        vector = [0.5, 0.25, -0.125, 0.75][: fields.get("dimensions", 4)]
        packed: object = vector
        if fields.get("encoding_format") == "base64" and not self.has("53:base64"):
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        places = range(count)[::-1] if self.has("53:order") else range(count)
        data = [{"object": "embedding", "index": place, "embedding": packed} for place in places]
        await connection.answer(200, {"object": "list", "data": data, "model": MODEL})

    async def _generate(self, connection, request, fields):
        wants_stream = bool(fields.get("stream"))
        warnings = self._check(request, fields)
        if self.max_running is not None and self.running >= self.max_running:
            raise refuse(503, "too many requests", code="server_is_overloaded", headers={"Retry-After": "1"})
        for fault in self.faults:
            REQUEST_FAULTS.get(fault, lambda _: None)(fields)
        replies = self._replies(fields)
        self.running += 1
        try:
            if wants_stream:
                await self._stream(connection, fields, replies)
            else:
                await self._whole(connection, fields, replies=replies, warnings=warnings)
        finally:
            self.running -= 1

    def _replies(self, fields):
        prompts = [fields.get("prompt")]
        if "prompt" in fields and isinstance(fields["prompt"], list) and not isinstance(fields["prompt"][0], int):
            prompts = fields["prompt"]
        limit = self._limit(fields)
        one_each = [fields if "messages" in fields else {**fields, "prompt": prompt} for prompt in prompts]
        drafts = [draft(one, index, limit) for one in one_each for index in range(fields.get("n", 1))]
        prompt_tokens = sum(count_prompt(one) for one in one_each)
        return Replies(fields, drafts, prompt_tokens=prompt_tokens, cached_tokens=0, number=self.number)

    def _limit(self, fields):
        default = 16 if "prompt" in fields else CONTEXT - count_prompt(fields)
        return fields.get("max_completion_tokens", fields.get("max_tokens", default))

    async def _whole(self, connection, fields, *, replies, warnings):
        body = replies.whole()
        if warnings:
            body["warnings"] = warnings
        for fault in self.faults:
            BODY_FAULTS.get(fault, lambda _: None)(body)
        is_paced = self._limit(fields) >= PACED_TOKENS
        for _ in range(body.get("usage", {}).get("completion_tokens", 0)):
            self.generated += 1
            if is_paced:
                await asyncio.sleep(0.0005)
                if connection.is_gone and not self.has("5:whole"):
                    return
        headers = (
            {} if self.has("42:part") else {"x-ratelimit-limit-requests": "60", "x-ratelimit-reset-requests": "1s"}
        )
        await connection.answer(200, body, {"x-ratelimit-remaining-requests": "59", **headers})

    async def _stream(self, connection, fields, replies):
        chunks = replies.chunks()
        for fault in self.faults:
            chunks = CHUNK_FAULTS.get(fault, lambda chunks: chunks)(chunks)
        await self._prefill(connection)
        events = [self._event(chunk) for chunk in chunks]
        if self.has("h3:mixed") and self.running > 3:
            events = [one.replace(b'"content": " ', b'"content": "X ') for one in events]
        if len(events) > self.fail_after:
            events = [*events[: self.fail_after], *self._failure(events[-1])]
        elif self.has("h3:closed") and self.running > 3:
            events = events[: len(events) // 2]
        elif self.has("2:after"):
            events = [*events[:-1], b"data: [DONE]\n\n", events[-1]]
        elif not self.has("2:missing"):
            events.append(b"data: [DONE]\n\n")
        is_paced = self._limit(fields) >= PACED_TOKENS
        for one in [b"".join(events)] if self.has("3:buffered") else events:
            if not connection.is_gone:
                await connection.send(one)
            elif not self.has("5:stream"):
                return
            self.generated += 1
            await asyncio.sleep(0.0005 if is_paced else 0)
        await connection.send(b"")

    def _failure(self, finish):
        error = {"error": {"message": "the step failed", "type": "server_error", "param": None, "code": "step_failed"}}
        if self.has("41:silent"):
            return []
        if self.has("41:stop"):
            return [finish, b"data: [DONE]\n\n"] if b'"error"' in finish else [finish, event(error)]
        return [event(error), *([b"data: [DONE]\n\n"] if self.has("41:done") else [])]

    async def _prefill(self, connection):
        headers = {"Content-Type": "text/event-stream; charset=utf-8"}
        if self.has("1:type"):
            headers["Content-Type"] = "application/json"
        headers |= {} if self.has("3:cache") else {"Cache-Control": "no-cache"}
        headers |= {} if self.has("3:proxy") else {"X-Accel-Buffering": "no"}
        connection.open_stream(headers)
        comment = b": waiting\n\n"
        if self.has("4:event"):
            comment = event({"status": "waiting"})
        elif self.has("4:field"):
            comment = b"event: ping\n" + comment
        await connection.send(comment)
        silence = self.prefill_seconds
        while silence > 0:
            await asyncio.sleep(min(silence, self.keep_alive))
            silence -= self.keep_alive
            if not self.has("4r:silent"):
                await connection.send(comment)

    def _event(self, chunk):
        data = event(chunk)
        if self.has("1:space"):
            return data.replace(b"data: ", b"data:", 1)
        if self.has("1:newline"):
            return data[:-1]
        if self.has("1:lines"):
            return b"data: " + json.dumps(chunk, indent=1).replace("\n", "\ndata: ").encode() + b"\n\n"
        return data

    def _check(self, request, fields):
        """Refuse what cannot be honoured; returns warnings."""
        try:
            return self._refuse(request, fields)
        except RefusalError as refusal:
            is_stream = fields.get("stream") is True
            if is_stream and (self.has("7:all") or (self.has("7:model") and refusal.status == 404)):
                raise RefusalError(200, refusal.body) from None
            raise

    def _refuse(self, request, fields):
        is_chat = request.path.endswith("chat/completions")
        if fields.get("model", MODEL) != MODEL or (self.has("49:missing") and "model" not in fields):
            raise refuse(404, "no such model", code="model_not_found", param="model")
        if is_chat:
            self._refuse_chat(fields)
        elif fields.get("logprobs") is not None and fields["logprobs"] > 5 and not self.has("28:six"):
            raise refuse(400, "logprobs must be 0 to 5", param="logprobs")
        elif self.has("52:tokens") and isinstance(fields["prompt"], list) and isinstance(fields["prompt"][0], int):
            raise refuse(400, "a prompt is text", param="prompt")
        self._refuse_sampling(fields)
        tokens, limit = count_prompt(fields), self._limit(fields)
        if tokens + limit > CONTEXT:
            text = f"{tokens} prompt tokens and {limit} of completion are more than the maximum of {CONTEXT}"
            raise refuse(400, text, code="context_length_exceeded", param="messages")
        unknown = sorted(set(fields) - CHAT_FIELDS) if is_chat else []
        if unknown and self.has("48:name"):
            raise refuse(400, "a field is unknown")
        return [f"unknown field {name}" for name in unknown if not self.has("48:silent")]

    def _refuse_chat(self, fields):
        if not isinstance(fields.get("messages"), list):
            raise refuse(400, "messages must be a list", param="messages")
        for one in fields["messages"]:
            self._refuse_message(one)
        if fields.get("stream_options") and not fields.get("stream") and not self.has("22:accepted"):
            raise refuse(400, "needs stream: true", param=None if self.has("22:param") else "stream_options")
        rivals = fields.get("top_logprobs", 0)
        most = {"25:21": 21, "25:20": 19}.get(next(iter(self.faults), ""), 20)
        if not 0 <= rivals <= most or (rivals and not fields.get("logprobs") and not self.has("25:alone")):
            raise refuse(400, "top_logprobs must be 0 to 20 and needs logprobs: true", param="top_logprobs")
        known = [tool["function"]["name"] for tool in fields.get("tools") or ()]
        if not set(calls_of(fields)) <= set(known):
            if not self.has("34:unknown"):
                raise refuse(400, "tool_choice names no tool", param="tool_choice")
            fields["tool_choice"] = "none"
        asked = fields.get("response_format") or {"type": "text"}
        schema = asked.get("json_schema", {}).get("schema", {"type": "object"})
        if schema["type"] == "no-such-type" or (self.has("47:refused") and asked["type"] == "text"):
            raise refuse(400, "no such type in a schema", param="response_format")
        if self.has("47:name") and "not" in json.dumps(schema):
            raise refuse(400, "", param="response_format")
        for name, fault in (("functions", "44:functions"), ("store", "48:store")):
            if name in fields and self.has(fault):
                raise refuse(400, f"{name} is gone", param=name)

    def _refuse_message(self, one):
        parts = one.get("content")
        if one["role"] not in ROLES or (one["role"] == "developer" and self.has("44:developer")):
            raise refuse(400, "no such role", param="messages")
        if isinstance(parts, list) and self.has("44:parts"):
            raise refuse(400, "content must be text", param="messages")
        if isinstance(parts, list) and any(part["type"] != "text" for part in parts):
            raise refuse(500 if self.has("44:image") else 400, "images are not supported", param="messages")
        if ("tool_calls" in one and self.has("33:history")) or ("reasoning" in one and self.has("36:reasoning")):
            raise refuse(400, "no such key in a message", param="messages")

    def _refuse_sampling(self, fields):
        top_p = fields.get("top_p", 1)
        if not (0 < top_p <= 1 or self.has("46:top_p")) or not 0 <= fields.get("temperature", 1) <= 2:
            raise refuse(400, "top_p must be in (0, 1], temperature 0 to 2", param="top_p")
        if any(abs(fields.get(name, 0)) > 2 for name in ("presence_penalty", "frequency_penalty")):
            raise refuse(400, "penalties are -2 to 2", param="presence_penalty")
        for key, value in (fields.get("logit_bias") or {}).items():
            if (not key.isdigit() and not self.has("46:bias")) or (abs(value) > 100 and self.has("46:clamp")):
                raise refuse(400, "logit_bias maps token ids to -100 to 100", param="logit_bias")


def _fields(request):
    if request.headers.get("content-type") != "application/json":
        raise refuse(415, "send application/json", code="unsupported_media_type")
    try:
        fields = json.loads(request.body)
    except ValueError:
        raise refuse(400, "the body is no JSON") from None
    if not fields.get("messages") and not {"prompt", "input"} & set(fields):
        raise refuse(400, "messages are missing", param="messages")
    return fields
