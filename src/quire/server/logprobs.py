"""Log-probabilities as chat and plain completions report them; every number is finite, as JSON needs (REL-13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quire.base.outputs import Logprob
from quire.protocol.chat import ChoiceLogprobs, TokenLogprob, TopLogprob
from quire.protocol.common import PromptLogprob, PromptLogprobs
from quire.protocol.completions import CompletionLogprobs
from quire.server.samples import Piece
from quire.text.logprobs import finite

if TYPE_CHECKING:
    from quire.text.tokenizer import Tokenizer

Entry = dict[int, Logprob]
_LAST_RANK = 2**31


def chat_logprobs(piece: Piece, top: int, tokenizer: Tokenizer) -> ChoiceLogprobs:
    """A piece's entries for chat, each with its `top` most likely tokens (fewer when the engine has fewer)."""
    content = []
    for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=True):
        rivals = [TopLogprob(*_spell(other, entry, tokenizer)) for other in _most_likely(entry, top)]
        content.append(TokenLogprob(*_spell(token_id, entry, tokenizer), rivals))
    return ChoiceLogprobs(content)


def prompt_logprobs(entries: Sequence[Entry | None]) -> PromptLogprobs:
    """Prompt log-probabilities keyed by token id, as vLLM returns them."""
    return [
        None
        if entry is None
        else {str(i): PromptLogprob(finite(lp.logprob), lp.rank, lp.decoded_token) for i, lp in entry.items()}
        for entry in entries
    ]


class CompletionLogprobBuilder:
    """Builds the parallel lists of plain completions for one choice, counting characters as text goes by."""

    def __init__(self, tokenizer: Tokenizer, *, top: int, skips_special: bool) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._skips_special = skips_special
        self._position = 0
        """Characters of the choice's text that earlier tokens began."""
        self._end = 0
        """Characters of the choice's text so far: no token starts behind it."""

    def prompt(self, text: str, token_ids: Sequence[int], entries: Sequence[Entry | None]) -> CompletionLogprobs:
        """The lists for an echoed prompt."""
        return self._build(text, token_ids, entries)

    def piece(self, piece: Piece) -> CompletionLogprobs:
        """The lists for a piece of generated text."""
        return self._build(piece.text, piece.token_ids, piece.logprobs)

    def _build(self, text: str, token_ids: Sequence[int], entries: Sequence[Entry | None]) -> CompletionLogprobs:
        self._end += len(text)
        result = CompletionLogprobs([], [], [], [])
        for token_id, entry in zip(token_ids, entries, strict=True):
            raw = self._tokenizer.token_bytes(token_id)
            inside_character = bool(raw) and raw[0] & 0xC0 == 0x80
            result.text_offset.append(min(max(0, self._position - inside_character), self._end))
            self._position += self._num_characters(token_id, raw)
            self._add(result, token_id, entry)
        # What follows starts where this text ends, however the tokens before it were spelled.
        self._position = min(self._position, self._end)
        return result

    def _add(self, result: CompletionLogprobs, token_id: int, entry: Entry | None) -> None:
        if entry is None:
            result.tokens.append(self._tokenizer.token_text(token_id))
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            return
        token, logprob, _ = _spell(token_id, entry, self._tokenizer)
        result.tokens.append(token)
        result.token_logprobs.append(logprob)
        top: dict[str, float] = {}
        for other in (*_most_likely(entry, self._top), token_id):
            text, value, _ = _spell(other, entry, self._tokenizer)
            top.setdefault(text, value)
        result.top_logprobs.append(top)

    def _num_characters(self, token_id: int, raw: bytes) -> int:
        """Characters a token begins; a continuation byte begins none."""
        if self._skips_special and self._tokenizer.is_special(token_id):
            return 0
        return sum(byte & 0xC0 != 0x80 for byte in raw)


def _most_likely(entry: Entry, top: int) -> list[int]:
    """Ids of the `top` most likely tokens of an entry; the taken token may not be among them."""
    if top <= 0:
        return []
    return sorted(entry, key=lambda token_id: (entry[token_id].rank or _LAST_RANK, -entry[token_id].logprob))[:top]


def _spell(token_id: int, entry: Entry, tokenizer: Tokenizer) -> tuple[str, float, list[int] | None]:
    """Text, finite log-probability and raw bytes of a token."""
    found = entry[token_id]
    text = found.decoded_token if found.decoded_token is not None else tokenizer.token_text(token_id)
    return text, finite(found.logprob), list(tokenizer.token_bytes(token_id)) or None
