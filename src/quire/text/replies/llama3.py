"""`{"name": ..., "parameters": {...}}`: Llama 3.1 to 3.3, with or without `<|python_tag|>` before it.

Without the tag an object is a call only where no content precedes it; several are separated by `;`, a comma or
whitespace. Calls of the built-in tools (`brave_search.call(...)`) are not JSON and come out as content.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.text.automaton import Automaton
from quire.text.replies.json_calls import read_json_call
from quire.text.replies.json_text import quoted
from quire.text.replies.lark import LarkWriter
from quire.text.replies.reading import Reading
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool

_TAG = "<|python_tag|>"
_END = Automaton((_TAG,))


class Llama3JsonFormat:
    """Bare JSON objects."""

    marks: tuple[str, ...] = (_TAG,)
    openers: tuple[str, ...] = ("{",)
    inner_marks: tuple[str, ...] = ()

    def read(self, mark: str, reading: Reading) -> Wait[None]:
        """Read calls for as long as one follows the other."""
        source = reading.source
        while mark:
            if mark == _TAG:
                yield from source.spaces()
                yield from source.expect("{")
            try:
                yield from read_json_call(reading, is_marked=mark == _TAG)
            except MalformedCallError:
                if not reading.sink.is_open or source.is_exhausted:
                    raise
                yield from reading.damaged(_END)
            yield from reading.gap()
            if (yield from source.match((";", ","))):
                yield from source.spaces()
            if source.is_exhausted:
                return
            mark = yield from source.match(("{", _TAG))
        raise MalformedCallError("no further call; a separator that nothing follows is content")

    def calls_rule(self, lark: LarkWriter, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The objects, separated by semicolons."""
        call = lark.rule("call", " | ".join(_object(lark, tool) for tool in tools))
        return f'{call} ("; " {call})*' if parallel else call


def _object(lark: LarkWriter, tool: Tool) -> str:
    """A rule for one call, sign by sign: a longer text would not let an answer in JSON begin the same way."""
    signs = ["{", quoted("name"), ":", quoted(tool.name), ",", quoted("parameters"), ":"]
    head = " / ?/ ".join(map(lark.literal, signs))
    return lark.rule("object", f'{head} / ?/ {lark.arguments(tool)} "}}"')
