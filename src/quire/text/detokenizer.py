"""Text that grows token by token: what `push` returns never has to be taken back.

The text of a sample is by definition the concatenation of the deltas, streamed or not (S28, REL-12). For the usual
decoders that is the whole list decoded at once, minus the prompt; they differ only where a token list spells ill-formed
UTF-8, because a character once sent cannot be unsent, and by a space where a tokenizer that takes spaces away meets six
quotation marks in a row, because only a few tokens are looked back at. Knows nothing of stop strings.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from quire.text.token_bytes import BytePlan
from quire.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
"""Tokens before the new ones that a decoder may look at (the space before a word, a joined suffix)."""
_MAY_JOIN = re.compile(r" (n'?|'[vr]?)$")
"""Ends before which `clean_up_tokenization_spaces` may yet take the space away ("1 '" and "1" are "1'1")."""
_MAX_HELD_TOKENS = 8
"""A character is at most four bytes, hence four tokens; a token that *is* U+FFFD must not be held for ever."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD per ill-formed byte, as decoders with byte fallback do it (Python's own writes one per run)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


codecs.register_error("quire.each_byte", _replace_each_byte)


class _Stream(Protocol):
    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Detokenizer:
    """One sample's output as text. Feed it the output ids in order, in lists of any length."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._skips = skip_special_tokens
        self._is_special = tokenizer.is_special
        prompt = _visible_tail(tokenizer, prompt_token_ids, skip_special_tokens)
        self._stream: _Stream
        if tokenizer.byte_plan is not None:
            self._stream = _ByteStream(tokenizer, tokenizer.byte_plan, prompt)
        else:
            joined = not (spaces_between_special_tokens or skip_special_tokens)
            self._stream = _WindowStream(tokenizer, prompt, joins_special_tokens=joined)

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain with `ids`: whole characters only, empty while one is incomplete."""
        stream = self._stream
        if self._skips:
            return "".join([stream.push(token_id) for token_id in ids if not self._is_special(token_id)])
        return "".join([stream.push(token_id) for token_id in ids])

    def flush(self) -> str:
        """The rest at the end of the output; an incomplete character becomes U+FFFD."""
        return self._stream.flush()


def _visible_tail(tokenizer: Tokenizer, prompt: Sequence[int], skips: bool) -> list[int]:
    """The last prompt tokens that show, in order; those are all the context a decoder needs."""
    visible = (
        token_id
        for token_id in reversed(prompt)
        if not (skips and tokenizer.is_special(token_id)) and tokenizer.vocabulary_spelling(token_id) is not None
    )
    return list(islice(visible, _CONTEXT_TOKENS))[::-1]


class _ByteStream:
    """For decoders whose text is the concatenated bytes of its tokens: an incremental UTF-8 decoder fed with them."""

    def __init__(self, tokenizer: Tokenizer, plan: BytePlan, prompt: list[int]) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._mark = plan.space_mark.encode("utf-8")
        self._spelling = tokenizer.vocabulary_spelling
        self._plan = plan
        # Only a text without anything before it has a leading space to lose.
        self._at_start = plan.leading_space != "keep" and not prompt
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors=plan.errors)
        self._decoder.decode(b"".join(map(self._bytes_of, prompt)))
        self._prompt_tail: bytes = self._decoder.getstate()[0]

    def push(self, token_id: int) -> str:
        data = self._bytes_of(token_id)
        if self._at_start and self._spelling(token_id) is not None:
            data = self._without_leading_space(token_id, data)
        if self._prompt_tail:
            return self._decode_after_tail(data, final=False)
        return self._decoder.decode(data)

    def flush(self) -> str:
        text = self._decode_after_tail(b"", final=True) if self._prompt_tail else self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _without_leading_space(self, token_id: int, data: bytes) -> bytes:
        if self._plan.leading_space == "drop_in_first_token":
            self._at_start = False
            return (self._spelling(token_id) or "").encode("utf-8").replace(self._mark, b"")
        self._at_start = not data
        return data.removeprefix(b" ")

    def _decode_after_tail(self, data: bytes, *, final: bool) -> str:
        """Decode while bytes of the prompt's unfinished last character are pending.

        If the output completes it, the character is output; if not, its U+FFFD was already part of the prompt's text.
        """
        whole = self._decoder.getstate()[0] + data
        text = self._decoder.decode(data, final=final)
        if not text:
            return ""
        tail, self._prompt_tail = self._prompt_tail, b""
        if text.startswith(REPLACEMENT) and not whole.startswith(REPLACEMENT.encode("utf-8")):
            return text[len(tail.decode("utf-8", self._plan.errors)) :]
        return text


class _WindowStream:
    """For every other decoder: decode the last few tokens with and without the new one, and return the difference."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], *, joins_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._joins = joins_special_tokens
        # Regions of the window: [context: already returned][held: not yet returned].
        self._context = prompt
        self._held: list[int] = []
        self._context_text = self._decode(prompt)

    def push(self, token_id: int) -> str:
        if self._tokenizer.vocabulary_spelling(token_id) is None:
            return ""
        self._held.append(token_id)
        return self._take(final=False)

    def flush(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        text = self._decode(self._context + self._held)
        may_change = text.endswith(REPLACEMENT) or _MAY_JOIN.search(text) is not None
        if may_change and len(self._held) < _MAX_HELD_TOKENS and not final:
            return ""
        delta = _text_after(self._context_text, text)
        window = self._context + self._held
        self._context = window[-max(_CONTEXT_TOKENS, len(self._held)) :]
        self._held = []
        self._context_text = self._decode(self._context)
        return delta

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=not self._joins)


def _text_after(before: str, text: str) -> str:
    """What `text` has beyond `before`, which it begins with but for spaces that it may have lost since."""
    if text.startswith(before):
        return text[len(before) :]
    kept = len(before) - before.count(" ")
    place = 0
    while kept and place < len(text):
        kept -= text[place] != " "
        place += 1
    return text[place:]
