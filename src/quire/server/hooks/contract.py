"""The interface of hooks: what they are given and what they may answer. Knows nothing of how they are called.

A hook sees a request before it is queued, in chat's words whichever API it came by, and every answer's text before a
client does. What it does not let through is never sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

_TEXT_FIELDS = ("messages", "tools", "functions", "chat_template", "chat_template_kwargs")
"""Fields besides `prompt` whose text the model reads."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the request, or end its answer with an error; clients are told not to try again.

    Raises:
        ValueError: for a `status` that does not blame the request.
    """

    message: str
    """For the client; it is sent as it stands."""
    status: int = 400
    """From 400 to 499; an answer that has begun ends with an error event instead."""
    code: str = "content_filter"
    param: str | None = None
    """The field that is to blame."""

    def __post_init__(self) -> None:
        """Check the status."""
        if not HTTPStatus.BAD_REQUEST <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ValueError(f"a rejection has a status from 400 to 499, found {self.status}")


@dataclass(frozen=True, slots=True)
class Stop:
    """End this choice here, with finish reason `content_filter`; what the filter held back is never shown."""

    text: str = ""
    """The last of the part to be sent."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a piece of an answer belongs to."""

    kind: Literal["content", "reasoning", "tool_arguments"]
    tool: str | None = None
    """The function whose arguments they are."""


@dataclass(slots=True, kw_only=True)
class HookRequest:
    """A request for text as hooks see it. `body` may be changed, in place or as a whole; all else is for reading."""

    request_id: str
    """As in the header `x-request-id` of the answer and in the log."""
    tenant: str
    path: str
    """The route, such as /v1/messages."""
    headers: Mapping[str, str]
    """By lower-case name, without those that hold keys."""
    body: dict[str, Any]
    """The request as JSON values: of `/v1/completions` for that route, of `/v1/chat/completions` for all others."""
    decode: Callable[[list[int]], str]
    """The text of token ids."""

    async def texts(self) -> list[str]:
        """Every text the model may read of the request, prompts that came as token ids included.

        Names and roles are among them: it is every string in the fields that make the prompt.
        """
        found = [text for name in _TEXT_FIELDS for text in _strings(self.body.get(name))]
        prompt = self.body.get("prompt") or []
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        for part in prompt:
            # A prompt may hold a million ids: decoding them must not hold up the event loop.
            found.append(part if isinstance(part, str) else await asyncio.to_thread(self.decode, part))
        return found


class Hook:
    """What a setting of `hooks` makes, once for a server. By itself it lets everything through unseen.

    One object serves all requests at once on one event loop: it must not block, and what it keeps of one request
    belongs into the request's filters.
    """

    async def on_request(self, request: HookRequest) -> Reject | None:
        """Look at a request before it is queued; None lets it go on, with `request.body` as it is by then."""

    def answer_filter(self, request: HookRequest, choice: int) -> AnswerFilter | None:
        """What one choice of the answer goes through, or None for nothing; asked before the request is queued.

        Where there is one, log-probabilities and token ids of the answer are refused: they would show what it hides.
        """


class AnswerFilter:
    """One choice of one answer on its way to the client. By itself it lets everything through.

    Calls come one after the other and in order. Pieces are cut anywhere, between characters.
    """

    async def push(self, part: Part, text: str) -> str | Stop | Reject:
        """More text of a part: what of it, and of what was held back, is to be sent now.

        A call of a tool begins with an empty text, before its name is sent.
        """
        return text

    async def end(self, part: Part) -> str | Stop | Reject:
        """The part has ended: the rest of what was held back of it. Another part may follow."""
        return ""


def _strings(value: Any) -> Iterator[str]:
    """Every string within a JSON value, keys left out; its depth was bounded when it was decoded."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
