"""Server-sent events as bytes: a `data:` line of JSON per event, a name where it has one, comments for keep-alive.

This file knows the framing, `[DONE]` included, and nothing of what the events mean.
"""

from __future__ import annotations

from typing import Any

import msgspec

CONTENT_TYPE = b"text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients skip it, proxies see traffic."""

_encoder = msgspec.json.Encoder()


def event(payload: Any) -> bytes:
    """One event whose data is the payload as JSON (msgspec writes it on one line)."""
    return b"data: " + _encoder.encode(payload) + b"\n\n"


def named_event(name: str, payload: Any) -> bytes:
    """One event with a name, for clients that choose by it."""
    return b"event: " + name.encode() + b"\ndata: " + _encoder.encode(payload) + b"\n\n"


def raw_event(body: bytes, *, name: str | None = None) -> bytes:
    """One event around JSON that is already encoded and holds no line break."""
    line = b"" if name is None else b"event: " + name.encode() + b"\n"
    return line + b"data: " + body + b"\n\n"
