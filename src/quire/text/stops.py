"""Stop strings in text that arrives in pieces: nothing is emitted that may yet turn out to be part of one (REL-11).

A sample stops at the first character that completes any stop string; if several end there, the longest one counts. This
does not depend on how the text is cut into pieces. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.base.errors import InvalidRequestError
from quire.text.automaton import Automaton


class StopChecker:
    """Watches one sample's text for stop strings and holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        if any(not stop for stop in stops):
            raise InvalidRequestError("stop must hold non-empty strings", param="stop")
        self._automaton = Automaton(stops)
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the sample; text pushed after it is dropped."""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; returns what may be shown now, and the stop string if one is complete.

        The stop string itself is part of the shown text only with `include_stop`.
        """
        if self.matched is not None:
            return "", self.matched
        if not self._state and not any(character in text for character in self._automaton.first):
            return text, None
        automaton, state = self._automaton, self._state
        for position, character in enumerate(text):
            state = automaton.step(state, character)
            stop = automaton.match[state]
            if stop is not None:
                return self._stop(stop, self._held + text[: position + 1]), stop
        self._state = state
        whole = self._held + text
        cut = len(whole) - automaton.depth[state]
        self._held = whole[cut:]
        return whole[:cut], None

    def flush(self) -> str:
        """The held-back text, once the output has ended without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _stop(self, stop: str, whole: str) -> str:
        self.matched, self._held, self._state = stop, "", 0
        return whole if self._include_stop else whole[: len(whole) - len(stop)]
