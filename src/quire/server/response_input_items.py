"""What a response was the answer to, as items that can be listed: those of its request, behind the turns before it.

Items are kept as they were sent, filled up to the form in which OpenAI lists them: texts as parts, an id, a status.
What an item may be is `responses_input.py`'s business, which has checked them before.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.base.errors import InvalidRequestError
from quire.server.batches.pages import PageQuery
from quire.server.response_store import StoredResponse

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


@dataclass(frozen=True, slots=True)
class InputItem:
    """One item of a list; `fields` holds the id as well."""

    id: str
    fields: dict[str, Any]


def input_items(sent: str | Sequence[dict[str, Any]] | None, earlier: StoredResponse | None) -> bytes:
    """The items of a request's input as JSON, behind those of the response it goes on from and of its output."""
    items: list[dict[str, Any]] = []
    if earlier is not None:
        items = msgspec.json.decode(earlier.items) + msgspec.json.decode(earlier.body)["output"]
    taken = {item["id"] for item in items}
    own = [{"role": "user", "content": sent}] if isinstance(sent, str) else sent or ()
    for item in own:
        listed = _listed(item)
        if listed["id"] is None or listed["id"] in taken:  # pages are told by ids
            listed["id"] = f"{_PREFIXES[listed['type']]}_{uuid.uuid4().hex}"
        taken.add(listed["id"])
        items.append(listed)
    return msgspec.json.encode(items)


def kept_items(stored: StoredResponse) -> list[InputItem]:
    """The items of a kept response, oldest first."""
    return [InputItem(item["id"], item) for item in msgspec.json.decode(stored.items)]


def page_of(items: Sequence[InputItem], query: PageQuery) -> tuple[list[InputItem], bool]:
    """The part of a list, oldest first, that is asked for, and whether there is more; raises InvalidRequestError."""
    ordered = list(items) if query.is_ascending else list(reversed(items))
    if query.after is not None:
        place = next((place for place, item in enumerate(ordered) if item.id == query.after), None)
        if place is None:
            raise InvalidRequestError(f"after names no item of this list: {query.after[:80]!r}", param="after")
        ordered = ordered[place + 1 :]
    return ordered[: query.limit], len(ordered) > query.limit


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """An item in the form in which it is listed, its id perhaps None."""
    kind = item.get("type") or "message"
    listed = {name: value for name, value in item.items() if value is not None}
    listed |= {"id": item.get("id"), "type": kind}
    if kind != "reasoning":
        listed.setdefault("status", "completed")
    if kind == "message" and isinstance(item["content"], str):
        part = "output_text" if item["role"] == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": []} if part == "output_text" else {}
        listed["content"] = [{"type": part, "text": item["content"], **extra}]
    return listed
