"""Server-sent events of a completion stream: the payloads as a forgiving client reads them, and their JSON.

Whether the framing is exactly right is for a check to say (lines 1, 2 and 4); this reader takes what it can, so that a
fault in the framing does not hide everything else.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from quire.conformance.outcome import FailedCheckError, require
from quire.conformance.raw import RawAnswer

DONE = "[DONE]"
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """A stream that was read to its end."""

    answer: RawAnswer

    @functools.cached_property
    def text(self) -> str:
        """The body; raises FailedCheckError when it is not UTF-8."""
        try:
            return self.answer.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FailedCheckError(f"wanted a stream in UTF-8; found {error}") from None

    @functools.cached_property
    def payloads(self) -> list[str]:
        """The text of every data line, `[DONE]` and what follows it included."""
        lines = (line.rstrip("\r") for line in self.text.split("\n"))
        return [line[5:].strip() for line in lines if line.startswith("data:")]

    @property
    def is_done(self) -> bool:
        """Whether the end mark came."""
        return any(payload.startswith(DONE) for payload in self.payloads)

    @functools.cached_property
    def objects(self) -> list[JsonObject]:
        """The JSON of every event before the end mark; raises FailedCheckError."""
        found = []
        for payload in self.payloads:
            if payload.startswith(DONE):
                break
            found.append(as_object(payload, "an event"))
        return found

    @property
    def error(self) -> JsonObject | None:
        """The event that reports a failure, if one came."""
        return next((item for item in self.objects if item.get("error")), None)

    @property
    def chunks(self) -> list[JsonObject]:
        """The chunks of a stream that went well; raises FailedCheckError for one that failed or brought nothing."""
        require(self.error is None, "a stream without an error", self.error)
        require(bool(self.objects), "a stream with chunks", self.text)
        return self.objects

    def choices(self, index: int | None = None) -> list[JsonObject]:
        """The choices of all chunks in order, those of one index if given; raises FailedCheckError."""
        found = []
        for chunk in self.chunks:
            choices = chunk.get("choices")
            require(isinstance(choices, list), "a list of choices in every chunk", chunk)
            found += [choice for choice in choices or () if index is None or choice.get("index") == index]
        require(all(isinstance(choice, dict) for choice in found), "objects as choices", found)
        return found

    def deltas(self, index: int = 0) -> list[JsonObject]:
        """What each chunk adds to one choice; raises FailedCheckError when that is no object."""
        found = [choice.get("delta") for choice in self.choices(index)]
        require(all(isinstance(delta, dict) for delta in found), "an object as delta of every choice", found)
        return [delta for delta in found if isinstance(delta, dict)]


def as_object(text: str, where: str) -> JsonObject:
    """A JSON object without NaN or infinities, which JSON has no words for; raises FailedCheckError."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise FailedCheckError(f"wanted {where} to be JSON; found {text[:120]!r} ({error})") from None
    require(isinstance(value, dict), f"{where} to be a JSON object", value)
    result: JsonObject = value
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
