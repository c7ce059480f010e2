"""A request on its way through the hooks, before it is queued: shown to each in turn, and taken back as each leaves it.

Whatever a hook makes of the body is read as strictly as a client's body. What decides the shape of the answer is the
client's to choose: it reads the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import ChatRequest
from quire.protocol.completions import CompletionRequest
from quire.protocol.decode import check_depth
from quire.server.hooks.contract import HookRequest
from quire.server.hooks.hook_set import HookSet, NamedHook
from quire.server.incoming import Incoming
from quire.server.record import record_of
from quire.server.stream import until_disconnect

T = TypeVar("T", ChatRequest, CompletionRequest)

SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})
SHAPE_FIELDS = (
    *("stream", "stream_options", "n", "logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids"),
    *("echo", "best_of", "functions"),
)
"""Fields that say how the answer looks; a hook that changes one fails."""


async def through_hooks(incoming: Incoming[T]) -> Incoming[T]:
    """A request as hooks leave it, and whose model is known only now; the very same where there are none.

    Raises:
        HookRejectedError: a hook refuses it. HookFailedError, HookTimeoutError: a hook did not answer as it may.
        ModelNotFoundError: no such model, or not for this tenant. ClientDisconnect: nobody waits for it any more.
    """
    hooks = incoming.call.state.hooks
    if hooks is None:
        return incoming
    return await until_disconnect(incoming.call.request.receive, _shown_to(hooks, incoming))


async def _shown_to(hooks: HookSet, incoming: Incoming[T]) -> Incoming[T]:
    call, body = incoming.call, incoming.body
    request = call.request
    tokenizer = incoming.engine.tokenizer
    seen = HookRequest(
        request_id=record_of(request.scope).request_id,
        tenant=call.tenant.name,
        path=getattr(request.scope.get("route"), "path", request.url.path),
        headers=_open_headers(request.headers),
        body=_as_json(body),
        decode=partial(tokenizer.decode, skip_special_tokens=False),
    )
    for entry in hooks.hooks:
        await hooks.check(entry, seen)
        body = _taken_back(hooks, entry, seen.body, body)
    return replace(incoming, call=call.asking(body.model, body.timeout), body=body, seen=seen)


def _taken_back(hooks: HookSet, entry: NamedHook, changed: Any, before: T) -> T:
    """The body as a hook left it; raises HookFailedError for one that is no request, or another kind of it."""
    try:
        body = msgspec.convert(changed, type(before))
        check_depth(body)
    except (msgspec.ValidationError, InvalidRequestError, RecursionError) as error:
        raise hooks.failed(entry.name, f"the body it left is no request: {error}") from None
    for name in SHAPE_FIELDS:
        if getattr(body, name, None) != getattr(before, name, None):
            raise hooks.failed(entry.name, f"it changed {name}, which decides the shape of the client's answer")
    return body


def _open_headers(headers: Headers) -> Mapping[str, str]:
    """What may be shown of the headers; several of one name are one, as HTTP has it."""
    shown = {name.lower() for name in headers} - SECRET_HEADERS
    return {name: ", ".join(headers.getlist(name)) for name in shown}


def _as_json(body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """A body as JSON values, without the fields that are not set."""
    fields = _set_ones(msgspec.to_builtins(body))
    messages = [_set_ones(message) for message in fields.get("messages", ())]
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = [_set_ones(part) for part in message["content"]]
    return fields | {"messages": messages} if messages else fields


def _set_ones(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
