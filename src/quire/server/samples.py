"""One sample's output as it goes to a client: pieces of text that carry their own tokens and log-probabilities.

The engine may bring tokens whose text is still held back (a stop string may be forming, a character is incomplete).
Their entries wait here for the text they belong to, so each token is reported exactly once, beside its text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.base.errors import StepError
from quire.base.outputs import CompletionOutput, Logprob

CONTENT_FILTER = "content_filter"
"""Why a sample ended that an operator's hook stopped."""
_FINISHED_WELL = frozenset({"stop", "length", CONTENT_FILTER})


@dataclass(slots=True)
class Piece:
    """Some text and the tokens reported with it; `logprobs` has one entry per token, or none when nobody asked."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


@dataclass(slots=True)
class Sample:
    """Turns one sample's deltas into pieces. `reports_tokens`: tokens without text are worth a piece of their own."""

    index: int
    reports_tokens: bool = False
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    _held: Piece = field(default_factory=lambda: Piece(""))

    def push(self, output: CompletionOutput) -> Piece | None:
        """Take in a delta; the piece that can be sent now, if any. A finish is noted in `finish_reason`.

        Raises:
            StepError: the engine gave the sample up; what is there must not look like an answer (REL-10).
        """
        if self.finish_reason is not None:
            return None
        self.num_tokens += len(output.token_ids)
        if self.reports_tokens:
            self._held.token_ids += output.token_ids
            self._held.logprobs += output.logprobs or ()
        self._held.text += output.text
        ends = output.finish_reason is not None
        if ends:
            self._finish(output)
        is_due = self._held.text or (ends and self._held.token_ids)
        return self._take() if is_due else None

    def _take(self) -> Piece:
        piece, self._held = self._held, Piece("")
        return piece

    def _finish(self, output: CompletionOutput) -> None:
        if output.finish_reason not in _FINISHED_WELL:
            raise StepError(f"the server ended this request before it was complete ({output.finish_reason})")
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
