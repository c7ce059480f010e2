"""Tokenizers without a tokenizer.json, through transformers: SentencePiece models, vocab and merges files, tekken.

The only file of this package that touches transformers, and only when such a checkpoint is loaded. Remote code is
never trusted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from quire.base.errors import ConfigError
from quire.text.codec import Codec, FastCodec
from quire.text.tokenizer_files import NAMED_TOKENS, TokenizerFiles

_LOAD_FAILURES = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What transformers raises over missing, damaged or foreign tokenizer files."""


class SlowCodec:
    """A transformers tokenizer that is written in Python and has no tokenizers-library twin."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.size = len(tokenizer)
        flagged = {token_id for token_id, token in added.items() if token.special}
        self.special_ids = frozenset(flagged | set(tokenizer.all_special_ids))
        self.added_ids = frozenset(added)
        self.decoder_config: dict[str, Any] | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text that is valid Unicode."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(self, first: str, second: str | None, *, max_tokens: int) -> tuple[list[int], list[int]]:
        """Ids and token types of one text or two with their special tokens, texts cut so that all is no longer."""
        joined = self._tokenizer(first, second, truncation="longest_first", max_length=max_tokens)
        ids = list(joined["input_ids"])
        return ids, list(joined.get("token_type_ids", [0] * len(ids)))

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, all of which are in the vocabulary."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, None for a gap."""
        if token_id >= self.size and token_id not in self.added_ids:
            return None
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its vocabulary spelling."""
        token_id: int | None = self._tokenizer.convert_tokens_to_ids(token)
        return token_id


def load_slow_codec(files: TokenizerFiles) -> tuple[Codec, TokenizerFiles]:
    """Let transformers make the tokenizer; its backend is used directly where it has one.

    Returns the codec, and `files` with the special tokens transformers found.

    Raises:
        ConfigError: when transformers is missing, or finds nothing it can load.
    """
    folder = files.directory
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"{folder} has no tokenizer.json; reading other tokenizer files needs transformers: pip install quire[hf]"
        ) from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except _LOAD_FAILURES as error:
        raise ConfigError(
            f"no tokenizer in {folder}: there is no tokenizer.json, and transformers finds none it can load: {error}"
        ) from error
    named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    ordered = {key: named[key] for key in (*NAMED_TOKENS, *named) if key in named}
    found = dataclasses.replace(files, named=ordered)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return SlowCodec(tokenizer), found
    return FastCodec(backend, dataclasses.replace(found, added=())), found
