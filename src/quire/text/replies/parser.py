"""The incremental parser: text in whatever pieces it comes, events as soon as they are certain.

What it promises: events do not depend on how the text is cut, but for how fragments are split; a call's name comes once
and before its arguments; indexes count 0, 1, 2, ...; nothing that may yet be markup is shown, and held-back text is
bounded (`MAX_HELD`). All text comes out somewhere: what looked like a call and is none (bad JSON, a name that no tool
has, a cut before the name) is content, markup included, and is not searched for calls again, so the work is linear. A
call that was announced stays, with its arguments as they are, and ends incomplete.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.text.automaton import Automaton
from quire.text.replies.call_format import CallFormat
from quire.text.replies.events import Event
from quire.text.replies.reading import Reading
from quire.text.replies.reasoning import ReasoningFormat
from quire.text.replies.source import MalformedCallError, Wait
from quire.text.replies.tool import Tool
from quire.text.replies.trimmer import Trimmer


class ReplyParser:
    """Reads one sample's reply. Not thread-safe; one per sample."""

    def __init__(
        self,
        calls: CallFormat | None,
        reasoning: ReasoningFormat | None,
        *,
        starts_in_reasoning: bool = False,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """`tools` are those of the request: other names are no calls, and schemas decide what bare values mean. None:
        any name is a call. `starts_in_reasoning`: the prompt opened a block (`ReasoningFormat.is_open_after`)."""
        schemas = None if tools is None else {tool.name: tool.parameters for tool in tools}
        self._reading = Reading(schemas)
        self._calls = calls
        self._reasoning = reasoning
        self._is_plain = calls is None and reasoning is None
        self._run = self._read(starts_in_reasoning)

    def push(self, text: str) -> list[Event]:
        """More of the reply; returns what became certain with it."""
        if self._is_plain:
            self._reading.sink.content(text)
        else:
            self._reading.source.add(text)
            next(self._run, None)
        return self._reading.sink.take()

    def finish(self) -> list[Event]:
        """The reply has ended; returns the rest. Nothing may be pushed after it."""
        if not self._is_plain:
            self._reading.source.end()
            next(self._run, None)
        return self._reading.sink.take()

    def _read(self, starts_in_reasoning: bool) -> Wait[None]:
        reading, calls, reasoning = self._reading, self._calls, self._reasoning
        source, content = reading.source, reading.content
        thoughts = Trimmer(reading.sink.reasoning)
        marks = calls.marks if calls is not None else ()
        # Where no content precedes, more texts are marks than in its midst.
        fresh_marks = (*([reasoning.opening] if reasoning else ()), *marks, *(calls.openers if calls else ()))
        anywhere = Automaton(marks)
        closing = Automaton([reasoning.closing]) if reasoning else anywhere
        is_thinking = starts_in_reasoning and reasoning is not None
        while not source.is_exhausted:
            mark = ""
            if not is_thinking and content.is_fresh:
                yield from source.spaces(content.text)
                source.hold()
                mark = yield from source.match(fresh_marks)
            if reasoning is not None and (is_thinking or mark == reasoning.opening):
                source.release()
                yield from self._read_reasoning(thoughts, closing, reasoning.closing)
                is_thinking = False
                continue
            if not mark:
                source.release()
                mark = yield from source.until(anywhere, content.text)
                source.hold()
                yield from source.match((mark,) if mark else ())
            if mark and calls is not None:
                yield from self._read_calls(calls, mark)
        thoughts.finish()
        content.finish()

    def _read_reasoning(self, thoughts: Trimmer, closing: Automaton, mark: str) -> Wait[None]:
        reading = self._reading
        reading.content.mark()
        thoughts.mark()
        if (yield from reading.source.until(closing, thoughts.text)):
            yield from reading.source.match((mark,))
            thoughts.mark()

    def _read_calls(self, calls: CallFormat, mark: str) -> Wait[None]:
        reading = self._reading
        try:
            yield from calls.read(mark, reading)
        except MalformedCallError:
            if reading.sink.is_open:
                reading.end(is_complete=False)
            reading.content.text(reading.source.release())
        else:
            reading.source.release()
            reading.content.mark()
