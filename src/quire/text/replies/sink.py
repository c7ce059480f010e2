"""Collects events between two pieces of text, neighbouring fragments joined, and keeps the order of calls right."""

from __future__ import annotations

from quire.text.replies.events import ArgumentsText, CallBegun, CallEnded, ContentText, Event, ReasoningText

_Fragment = type[ContentText] | type[ReasoningText] | type[ArgumentsText]


class EventSink:
    """Where a parser writes; `take` empties it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._kind: _Fragment = ContentText
        self._parts: list[str] = []
        self.num_calls = 0
        """Calls that have begun."""
        self._has_arguments = False
        self.is_open = False
        """Whether a call has begun and not ended."""

    def content(self, text: str) -> None:
        """Add to the answer."""
        self._add(ContentText, text)

    def reasoning(self, text: str) -> None:
        """Add to the reasoning."""
        self._add(ReasoningText, text)

    def begin(self, name: str) -> None:
        """Announce the next call."""
        self._join()
        self.num_calls += 1
        self.is_open, self._has_arguments = True, False
        self._events.append(CallBegun(self.num_calls - 1, name))

    def arguments(self, text: str) -> None:
        """Add to the open call's arguments."""
        self._has_arguments = self._has_arguments or bool(text)
        self._add(ArgumentsText, text)

    def end(self, *, is_complete: bool) -> None:
        """End the open call; a complete one without arguments was called with none."""
        if is_complete and not self._has_arguments:
            self.arguments("{}")
        self._join()
        self.is_open = False
        self._events.append(CallEnded(self.num_calls - 1, is_complete))

    def take(self) -> list[Event]:
        """The events since the last time."""
        self._join()
        events, self._events = self._events, []
        return events

    def _add(self, kind: _Fragment, text: str) -> None:
        if not text:
            return
        if kind is not self._kind:
            self._join()
            self._kind = kind
        self._parts.append(text)

    def _join(self) -> None:
        if not self._parts:
            return
        text = "".join(self._parts)
        self._parts.clear()
        kind = self._kind
        self._events.append(
            ArgumentsText(self.num_calls - 1, text) if kind is ArgumentsText else _text_event(kind, text)
        )


def _text_event(kind: _Fragment, text: str) -> Event:
    return ReasoningText(text) if kind is ReasoningText else ContentText(text)
