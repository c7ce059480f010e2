"""Text to token ids and back, for one checkpoint; equal to transformers' fast tokenizer but for a doubled BOS.

Knows tokens one by one (`token_bytes`) and whole lists (`encode`, `decode`). Text that grows token by token is the
business of `text/detokenizer.py`; which model uses the tokenizer is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quire.base.errors import ConfigError, InvalidRequestError
from quire.text.codec import Codec, FastCodec
from quire.text.slow_tokenizer import load_slow_codec
from quire.text.token_bytes import BytePlan, byte_plan
from quire.text.tokenizer_files import TokenizerFiles


class Tokenizer:
    """One checkpoint's vocabulary. Safe to use from several threads."""

    def __init__(self, codec: Codec, files: TokenizerFiles) -> None:
        self._codec = codec
        self._bytes: dict[int, bytes] = {}
        self.name = files.directory.name
        self.special_tokens = dict(files.named)
        """Text of each named special token that is set, as chat templates see them."""
        self.byte_plan: BytePlan | None = byte_plan(codec.decoder_config)
        """How tokens become bytes; None when only `decode` of whole lists knows."""
        self.bos_token = files.named.get("bos_token")
        self.eos_token = files.named.get("eos_token")
        self.bos_token_id = codec.token_to_id(self.bos_token) if self.bos_token is not None else None
        self.eos_token_id = codec.token_to_id(self.eos_token) if self.eos_token is not None else None
        self.vocab_size = codec.size
        """Ids, added tokens included; an embedding may have more rows."""

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer in directory `path`: tokenizer.json, else whatever transformers can convert.

        Code in the directory is never run (SEC-5).

        Raises:
            ConfigError: when there is no tokenizer, it is damaged, or it needs the optional extra `hf`.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ConfigError(f"tokenizer: {folder} is not a directory; --tokenizer names one with a tokenizer.json")
        files = TokenizerFiles.read(folder)
        if (folder / "tokenizer.json").is_file():
            return cls(FastCodec.from_file(folder / "tokenizer.json", files), files)
        return cls(*load_slow_codec(files))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; special tokens are added as the checkpoint asks, a BOS only where the text has none.

        Raises:
            InvalidRequestError: for lone surrogates, which no UTF-8 text can hold (SEC-26).
        """
        if not text.isascii():
            _check_unicode(text)
        ids = self._codec.encode(text, add_special_tokens=add_special_tokens)
        bos = self.bos_token_id
        doubled = bos is not None and ids[:2] == [bos, bos]
        if doubled and add_special_tokens and self.bos_token and text.startswith(self.bos_token):
            del ids[0]
        return ids

    def encode_cut(self, text: str, *, max_tokens: int) -> list[int]:
        """Token ids of the beginning of `text`: at most `max_tokens`, with the special tokens of a whole one.

        Raises as `encode`.
        """
        ids = self.encode(text)
        if len(ids) <= max_tokens:
            return ids
        return self._codec.encode_pair(text, None, max_tokens=max_tokens)[0]

    def encode_pair(self, first: str, second: str, *, max_tokens: int) -> tuple[list[int], int | None]:
        """Token ids of two texts as the checkpoint joins them, and where those of the second type begin.

        Of a pair longer than `max_tokens` the longer text loses its end first. The place is None where the tokenizer
        gives all tokens one type. Raises as `encode`.
        """
        for text in (first, second):
            _check_unicode(text)
        ids, types = self._codec.encode_pair(first, second, max_tokens=max_tokens)
        return ids, types.index(1) if 1 in types else None

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Text of `ids`; ids outside the vocabulary (padded embeddings) add nothing.

        `spaces_between_special_tokens=False` drops the space some decoders put between neighbouring special tokens.
        """
        known = [token_id for token_id in ids if 0 <= token_id < self.vocab_size or self._is_known(token_id)]
        if skip_special_tokens or spaces_between_special_tokens:
            return self._codec.decode(known, skip_special_tokens=skip_special_tokens)
        return "".join(self._codec.decode(run, skip_special_tokens=False) for run in self._runs(known))

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes a token adds within a text: part of a character, perhaps; empty for an unknown id."""
        cached = self._bytes.get(token_id)
        if cached is None:
            cached = self._bytes[token_id] = self._spell(token_id)
        return cached

    def token_text(self, token_id: int) -> str:
        """A token as readable text; bytes that are no whole character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, spelling: str) -> int | None:
        """The id of the token that the vocabulary writes so, None where there is none."""
        return self._codec.token_to_id(spelling)

    def special_id(self, text: str) -> int | None:
        """The id of a text that is one special token, None for any other."""
        token_id = self._codec.token_to_id(text)
        return token_id if token_id is not None and self.is_special(token_id) else None

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves the token out."""
        return token_id in self._codec.special_ids

    def vocabulary_spelling(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it (marks and all), None for an id it does not have."""
        return self._codec.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def _is_known(self, token_id: int) -> bool:
        return self.vocabulary_spelling(token_id) is not None

    def _spell(self, token_id: int) -> bytes:
        token = self.vocabulary_spelling(token_id)
        if token is None:
            return b""
        if self.byte_plan is None:
            return self._codec.decode([token_id], skip_special_tokens=False).encode("utf-8", "replace")
        return self.byte_plan.spell(token)

    def _runs(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut `ids` between neighbouring special tokens."""
        start = 0
        for index in range(1, len(ids)):
            if self.is_special(ids[index - 1]) and self.is_special(ids[index]):
                yield ids[start:index]
                start = index
        if ids:
            yield ids[start:]


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), which is "
            "not valid Unicode; send the whole character or leave it out",
            code="invalid_unicode",
        ) from None
