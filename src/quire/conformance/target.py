"""The server under examination: how it is asked, what its answers are held to, and what is known about it.

Whole answers come through httpx, streams through a plain socket. `chat`, `complete` and `stream` are for requests that
must succeed; `ask` returns whatever came. A server may say that it lacks a feature, and only where a check allows it
(`may_lack`) does that skip the check: an error never counts as a pass.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from quire.conformance.events import JsonObject, Stream, as_object
from quire.conformance.outcome import FailedCheckError, SkippedCheckError, shown
from quire.conformance.raw import RawAnswer, RawExchange, connect, json_request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GREEDY: JsonObject = {"temperature": 0, "seed": 7}
_LACKS_CODES = {"unsupported_value", "unsupported_parameter", "unsupported", "not_supported", "not_implemented"}
_LACKS_WORDS = re.compile(r"not (?:yet )?(?:supported|available|implemented)|unsupported|does not support|requires --")
_TEMPLATE_WORDS = re.compile(r"chat.?template", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """How to examine; times are in seconds."""

    base_url: str
    model: str | None = None
    api_key: str | None = None
    timeout: float = 60.0
    """For one request."""
    settle_seconds: float = 5.0
    """How long a server may take to end a request whose client has left."""
    keep_alive_seconds: float = 30.0
    """The longest silence of a stream."""
    is_slow: bool = False
    concurrency: int = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out before the first check."""

    model: str
    models: tuple[JsonObject, ...] = ()
    context: int | None = None
    """Tokens of prompt and answer together; None where the server does not say."""
    endless: JsonObject = field(default_factory=dict)
    """Fields that keep an answer from ending before its limit; empty where the server takes none."""
    no_chat: str = ""
    """Why this model cannot chat; empty when it can."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> JsonObject:
        """The body as a JSON object; raises FailedCheckError."""
        return as_object(self.text, f"the body of HTTP {self.status}")

    @property
    def error(self) -> JsonObject:
        """The error in the body, empty when there is none in OpenAI's shape."""
        try:
            error = json.loads(self.text)["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return error if isinstance(error, dict) else {}

    def __str__(self) -> str:
        return f"HTTP {self.status} {shown(self.error.get('message') or self.text)}"


class Target:
    """One server under a base URL such as `http://127.0.0.1:8000` (with or without `/v1`)."""

    def __init__(self, options: Options, facts: Facts | None = None) -> None:
        self.options = options
        self.facts = facts or Facts(options.model or "")
        self.base_url = options.base_url.rstrip("/").removesuffix("/v1")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._http = httpx.AsyncClient(timeout=options.timeout, limits=limits)

    @property
    def key_headers(self) -> dict[str, str]:
        """What shows the key, if one was given."""
        key = self.options.api_key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def body(self, fields: Mapping[str, Any]) -> JsonObject:
        """The body of a small greedy chat request with these fields; None takes a default field away."""
        default = {"model": self.facts.model, "messages": user("Tell me a story about a lighthouse."), "max_tokens": 24}
        return _without_none({**default, **GREEDY, **fields})

    def plain_body(self, fields: Mapping[str, Any]) -> JsonObject:
        """The body of a small greedy completion request with these fields; None takes a default field away."""
        default = {"model": self.facts.model, "prompt": "Once upon a time there was", "max_tokens": 24}
        return _without_none({**default, **GREEDY, **fields})

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request with these headers in place of the key's; whatever the server answers is returned."""
        content = json.dumps(body).encode() if isinstance(body, Mapping) else body
        sent = dict(self.key_headers if headers is None else headers)
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        response = await self._http.request(method, self.base_url + path, content=content, headers=sent)
        return Answer(response.status_code, response.headers, response.text)

    async def chat(self, fields: Mapping[str, Any], *, may_lack: bool = False) -> JsonObject:
        """A whole chat answer; raises FailedCheckError, or SkippedCheckError where there is no chat."""
        self.need_chat()
        answer = await self.ask("POST", CHAT, self.body(fields))
        return succeeded(answer, asked=fields, may_lack=may_lack)

    async def complete(self, fields: Mapping[str, Any], *, may_lack: bool = False) -> JsonObject:
        """A whole completion; raises FailedCheckError."""
        answer = await self.ask("POST", COMPLETIONS, self.plain_body(fields))
        return succeeded(answer, asked=fields, may_lack=may_lack)

    async def refused_chat(self, fields: Mapping[str, Any]) -> Answer:
        """The answer to a chat request that must not succeed; raises FailedCheckError when it did."""
        self.need_chat()
        answer = await self.ask("POST", CHAT, self.body(fields))
        if answer.status < 400:
            raise FailedCheckError(f"wanted a refusal of {shown(dict(fields))}; found HTTP {answer.status}")
        return answer

    async def stream(self, fields: Mapping[str, Any], *, may_lack: bool = False) -> Stream:
        """A chat stream read to its end; raises like `chat`."""
        self.need_chat()
        return await self._stream(CHAT, fields, may_lack=may_lack)

    async def stream_plain(self, fields: Mapping[str, Any], *, may_lack: bool = False) -> Stream:
        """A completion stream read to its end; raises FailedCheckError."""
        return await self._stream(COMPLETIONS, fields, may_lack=may_lack)

    async def _stream(self, path: str, fields: Mapping[str, Any], *, may_lack: bool) -> Stream:
        body = self.body(fields) if path == CHAT else self.plain_body(fields)
        answer = await self.raw_answer({**body, "stream": True}, path=path)
        if answer.status != 200:
            refusal = Answer(answer.status, answer.headers, answer.body.decode("utf-8", "replace"))
            succeeded(refusal, asked={**fields, "stream": True}, may_lack=may_lack)
        return Stream(answer)

    @asynccontextmanager
    async def exchange(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[RawExchange]:
        """A request on a socket of its own, sent but not yet answered."""
        headers, data = json_request(self.base_url, body, self.key_headers)
        async with connect(self.base_url) as exchange:
            await exchange.send("POST", self.raw_path(path), headers, data)
            yield exchange

    def raw_path(self, path: str) -> str:
        """The absolute path of a route, the base URL's own prefix included."""
        return urlsplit(self.base_url).path + path

    async def raw_answer(self, body: Mapping[str, Any], *, path: str = CHAT) -> RawAnswer:
        """The bytes that answer a request, whatever its status; raises TimeoutError."""
        async with asyncio.timeout(self.options.timeout), self.exchange(path, body) as exchange:
            answer = await exchange.head()
            async for _ in exchange.arrivals(answer):
                pass
        return answer

    def need_chat(self) -> None:
        """Raises SkippedCheckError when the model cannot chat."""
        if self.facts.no_chat:
            raise SkippedCheckError(f"the model does not chat: {self.facts.no_chat}")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def succeeded(answer: Answer, *, asked: Mapping[str, Any] | None = None, may_lack: bool = False) -> JsonObject:
    """The body of a success; `asked` is what the message of a failure names.

    Raises:
        SkippedCheckError: the server says that it lacks this, and `may_lack` allows it to.
        FailedCheckError: any other refusal.
    """
    if answer.status == 200:
        return answer.json
    if may_lack and says_it_lacks(answer):
        raise SkippedCheckError(f"the server says that it lacks this: {answer}")
    subject = f" for {shown(dict(asked))}" if asked else ""
    raise FailedCheckError(f"wanted HTTP 200{subject}; found {answer}")


def says_it_lacks(answer: Answer) -> bool:
    """Whether a refusal means a feature that the server does not have, and not a mistake in the request."""
    if answer.status == 501:
        return True
    words = str(answer.error.get("message") or answer.text).lower()
    return answer.status in (400, 404, 422) and (
        answer.error.get("code") in _LACKS_CODES or _LACKS_WORDS.search(words) is not None
    )


def lacks_template(answer: Answer) -> bool:
    """Whether a refused conversation means a model without a chat template."""
    return 400 <= answer.status < 500 and _TEMPLATE_WORDS.search(answer.text) is not None


def user(content: object) -> list[JsonObject]:
    """A conversation of one message."""
    return [{"role": "user", "content": content}]


def _without_none(fields: Mapping[str, Any]) -> JsonObject:
    return {name: value for name, value in fields.items() if value is not None}
