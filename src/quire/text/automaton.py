"""Several strings looked for at once (Aho and Corasick, 1975): one step per character, whatever the strings are.

Knows nothing of what the strings mean: stop strings (`text/stops.py`) and the marks around tool calls
(`text/replies/`) are found with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Automaton:
    """All strings as one machine.

    State 0 is "nothing matched"; `depth[s]` is the length of the longest end of the text that begins a string, which is
    exactly what has to be held back.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.fail = [0]
        self.depth = [0]
        self.match: list[str | None] = [None]
        """Per state: the longest string that ends here."""
        for string in strings:
            self._insert(string)
        self._link()
        self.first = tuple(self.next[0])
        """The characters that strings begin with."""

    def _insert(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self.next[state]:
                self.next[state][character] = len(self.next)
                self.next.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.match.append(None)
            state = self.next[state][character]
        self.match[state] = string

    def _link(self) -> None:
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            self.match[state] = self.match[state] or self.match[self.fail[state]]
            for character, child in self.next[state].items():
                self.fail[child] = self.step(self.fail[state], character)
                queue.append(child)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(character, 0)

    def search(self, text: str, start: int) -> tuple[int, str | None]:
        """Look for the first string that is completed in `text[start:]`.

        Returns its place and the string; or else the place where an end of the text begins that may yet become one
        (the length of the text when there is none), and None.
        """
        root, state = self.next[0], 0
        for place in range(start, len(text)):
            character = text[place]
            # Most characters begin nothing; they cost one look-up.
            state = self.step(state, character) if state else root.get(character, 0)
            if state:
                found = self.match[state]
                if found is not None:
                    return place + 1 - len(found), found
        return len(text) - self.depth[state], None
