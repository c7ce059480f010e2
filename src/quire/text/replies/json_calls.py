"""A call written as one JSON object with `name` and `arguments` (or `parameters`), keys in any order.

The call is announced when its name is known and its arguments begin; arguments that come before the name are held back
until then. Other keys (`id`, `type`) are read and dropped.
"""

from __future__ import annotations

import json

from quire.text.replies.json_scanner import JsonScanner
from quire.text.replies.reading import Reading
from quire.text.replies.source import MalformedCallError, Wait

_ARGUMENTS = ("arguments", "parameters")


class _Call:
    """What is known of the call so far."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.name = ""
        self.has_arguments = False
        """Whether they were read to their end."""
        self._early: list[str] | None = None
        """Arguments that came before the name."""

    def read_field(self, key: str) -> Wait[None]:
        """Read one key's value."""
        reading = self._reading
        if key == "name" and not self.name:
            name = yield from _string(reading)
            reading.check_name(name)
            self.name = name
            if self._early is not None:
                reading.begin(name)
                reading.sink.arguments("".join(self._early))
        elif key in _ARGUMENTS and not self.has_arguments:
            if self.name:
                reading.begin(self.name)
                yield from reading.arguments(reading.sink.arguments)
            else:
                self._early = []
                yield from reading.arguments(self._early.append)
            self.has_arguments = True
        else:
            yield from reading.value(lambda text: None)


def read_json_call(reading: Reading, *, is_marked: bool) -> Wait[None]:
    """Read the object whose opening brace was just read, as one call.

    `is_marked`: a mark said that this is a call. Without one, an object that names no arguments is no call unless the
    tools are known, because any JSON answer may have a `name`. Once the arguments are complete the rest is taken
    leniently: a missing closing brace does no harm.

    Raises:
        MalformedCallError: with the call still open when its arguments are not JSON or end too early; else there was
            none.
    """
    call = _Call(reading)
    try:
        yield from _fields(reading, call)
    except MalformedCallError:
        if not reading.sink.is_open and call.name and is_marked and reading.source.is_exhausted:
            reading.begin(call.name)
        raise
    if not reading.sink.is_open:
        if not call.name or not (is_marked or reading.tools is not None):
            raise MalformedCallError("no call")
        reading.begin(call.name)
    reading.end()


def _fields(reading: Reading, call: _Call) -> Wait[None]:
    source = reading.source
    while True:
        yield from source.spaces()
        key = yield from _string(reading)
        yield from source.spaces()
        yield from source.expect(":")
        yield from call.read_field(key)
        if call.name and call.has_arguments:
            # Nothing that still comes matters, nor whether it is well formed.
            yield from source.feed(JsonScanner.after_a_field())
            return
        yield from source.spaces()
        found = yield from source.match((",", "}"))
        if not found:
            raise MalformedCallError("neither another key nor the end of the object")
        if found == "}":
            return


def _string(reading: Reading) -> Wait[str]:
    """Read a JSON string."""
    parts: list[str] = []
    yield from reading.source.spaces()
    if (yield from reading.source.peek()) != '"':
        raise MalformedCallError("not a string")
    yield from reading.value(parts.append)
    return str(json.loads("".join(parts), strict=False))
