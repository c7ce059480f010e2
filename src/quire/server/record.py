"""What is known of one HTTP request while it runs, and the ids of requests."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

CLIENT_CLOSED = 499
"""Logged, never sent: the client went away first."""
_RECORD = "quire.record"
_ID = re.compile(rb"[\x21-\x7e]{1,256}")


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What is known of one HTTP request; routes fill in the counts."""

    request_id: str
    method: str
    started: float = field(default_factory=time.monotonic)
    route: str = "unmatched"
    status: int = 0
    streamed: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    first_token_time: float | None = None
    """Monotonic seconds of the first output."""
    finish_reasons: list[str] = field(default_factory=list)
    error_code: str | None = None
    tenant: str | None = None
    """Whose key came with it."""
    generates: bool = False
    """Whether it asked for a generation, admitted or refused."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """What the answer carries besides its own headers."""
    on_end: Callable[[RequestRecord], None] | None = None
    """Called once when the exchange is over, however it went."""

    def fields(self, now: float) -> dict[str, Any]:
        """The log line's fields; what does not apply is left out."""
        ttft = None if self.first_token_time is None else round(self.first_token_time - self.started, 4)
        known = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "tenant": self.tenant,
            "seconds": round(now - self.started, 4),
            "ttft": ttft,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finish": ",".join(self.finish_reasons) or None,
            "streamed": self.streamed or None,
            "error": self.error_code,
        }
        return {name: value for name, value in known.items() if value is not None}


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request a scope belongs to; a fresh one where no log layer surrounds the app."""
    if _RECORD not in scope:
        scope[_RECORD] = RequestRecord(request_id=new_request_id(), method=scope.get("method", "GET"))
    record: RequestRecord = scope[_RECORD]
    return record


def inner_scope(scope: MutableMapping[str, Any]) -> tuple[dict[str, Any], RequestRecord]:
    """A copy of a scope for a run that may outlive its request, with a record of its own under the same id."""
    outer = record_of(scope)
    record = replace(outer, headers=[], finish_reasons=[], on_end=None)
    return {**scope, _RECORD: record}, record


def open_record(scope: MutableMapping[str, Any]) -> RequestRecord:
    """Begin the record of a request, under the id its client gave if that is fit to be echoed."""
    request_id = client_request_id(scope["headers"]) or new_request_id()
    record = RequestRecord(request_id=request_id, method=scope["method"])
    scope[_RECORD] = record
    return record


def new_request_id() -> str:
    """A fresh id for a request that brought none."""
    return f"req-{uuid.uuid4().hex}"


def client_request_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The client's `x-request-id` when it is at most 256 printable ASCII characters without spaces."""
    value = next((value for name, value in headers if name == b"x-request-id"), None)
    return value.decode("ascii") if value is not None and _ID.fullmatch(value) else None
