"""The seam below `Tokenizer`: what it needs of a vocabulary, and the implementation over the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from quire.base.errors import ConfigError
from quire.text.tokenizer_files import TokenizerFiles


class Codec(Protocol):
    """A vocabulary that turns text into ids and back."""

    size: int
    """Ids, added tokens included."""
    special_ids: frozenset[int]
    added_ids: frozenset[int]
    """Ids of tokens matched before the model splits text, special or not."""
    decoder_config: dict[str, Any] | None
    """How token strings become text, in the fields of tokenizer.json; None when only `decode` knows."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text that is valid Unicode."""

    def encode_pair(self, first: str, second: str | None, *, max_tokens: int) -> tuple[list[int], list[int]]:
        """Ids and token types of one text or two with their special tokens, texts cut so that all is no longer."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, all of which are in the vocabulary."""

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, None for a gap."""

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its vocabulary spelling."""


LONG_CHARACTERS = 2048
"""From here on texts, and lists of ids, go through the library's calls for batches, even alone: these let other threads
of Python run meanwhile, and the others stop the whole process for seconds (SEC-22)."""

_CLEANUPS = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
             (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip
"""Replacements behind `clean_up_tokenization_spaces`, in order; defined by transformers."""


class FastCodec:
    """A tokenizers-library tokenizer with the declared special tokens added."""

    def __init__(self, core: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = bool(files.config.get("split_special_tokens", False))
        _declare_tokens(core, files)
        self._core = core
        self._cleans_up = bool(files.config.get("clean_up_tokenization_spaces", False)) and not _is_bpe(core)
        # Cleaning rewrites text across tokens, so bytes of single tokens do not add up to the text.
        self.decoder_config = None if self._cleans_up else _decoder_config(core)
        added = core.get_added_tokens_decoder()
        self.size = core.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.added_ids = frozenset(added)

    @classmethod
    def from_file(cls, path: Path, files: TokenizerFiles) -> FastCodec:
        """Load tokenizer.json; raises ConfigError when the file is damaged."""
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise ConfigError(f"{path} is not a tokenizer this version of tokenizers can read: {error}") from error
        return cls(core, files)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text that is valid Unicode."""
        if len(text) <= LONG_CHARACTERS:
            ids: list[int] = self._core.encode(text, add_special_tokens=add_special_tokens).ids
            return ids
        (encoding,) = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_pair(self, first: str, second: str | None, *, max_tokens: int) -> tuple[list[int], list[int]]:
        """Ids and token types of one text or two with their special tokens, texts cut so that all is no longer."""
        core = self._core
        texts = [text for text in (first, second) if text is not None]
        parts = core.encode_batch_fast(texts, add_special_tokens=False)
        room = max_tokens - core.num_special_tokens_to_add(len(parts) == 2)
        for part, length in zip(parts, cut_lengths([len(part) for part in parts], room), strict=True):
            part.truncate(length)
        joined = core.post_process(parts[0], parts[1] if second is not None else None, add_special_tokens=True)
        return list(joined.ids), list(joined.type_ids)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, all of which are in the vocabulary."""
        if len(ids) <= LONG_CHARACTERS:
            text: str = self._core.decode(ids, skip_special_tokens=skip_special_tokens)
        else:
            (text,) = self._core.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        if self._cleans_up:
            for found, replacement in _CLEANUPS:
                text = text.replace(found, replacement)
        return text

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, None for a gap."""
        token: str | None = self._core.id_to_token(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its vocabulary spelling."""
        token_id: int | None = self._core.token_to_id(token)
        return token_id


def cut_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """How long one text or two may be to fit `room` together: the longer loses tokens first, then both alike."""
    if sum(lengths) <= room or len(lengths) == 1:
        return [min(length, max(0, room)) for length in lengths]
    shorter = min(*lengths, max(0, room // 2))
    longer = max(0, room - shorter)
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def _declare_tokens(core: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    known = {repr(token) for token in core.get_added_tokens_decoder().values()}
    listed = [tokenizers.AddedToken(**entry) for entry in files.added]
    core.add_tokens([token for token in listed if repr(token) not in known])
    present = {token.content for token in core.get_added_tokens_decoder().values()}
    core.add_tokens([tokenizers.AddedToken(text, special=True) for text in files.special if text not in present])


def _is_bpe(core: tokenizers.Tokenizer) -> bool:
    return type(core.model).__name__ == "BPE"


def _decoder_config(core: tokenizers.Tokenizer) -> dict[str, Any] | None:
    if core.decoder is None:
        return None
    config: dict[str, Any] = json.loads(core.decoder.__getstate__())
    return config
