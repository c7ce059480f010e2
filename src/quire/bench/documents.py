"""Texts to judge a model on: from a file, or random token ids. Knows files and tokens, not models."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.base.errors import ConfigError
from quire.bench.workload import random_prompts
from quire.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, and how many of them are only read: predictions count from there on."""

    token_ids: list[int]
    num_given: int = 1

    @property
    def num_judged(self) -> int:
        """Tokens whose prediction counts; the first token of a text has none."""
        return max(0, len(self.token_ids) - max(1, self.num_given))


def read_documents(path: Path, tokenizer: Tokenizer) -> list[Document]:
    """The documents of a file: each line of a .jsonl file is one, anything else is one text.

    A line holds a string, {"text": ...}, or {"prompt": ..., "completion": ...}, of which only the completion counts.

    Raises:
        ConfigError: the file cannot be read, or a line is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path} cannot be read: {error}") from None
    if path.suffix != ".jsonl":
        return [Document(tokenizer.encode(text))]
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return [_from_line(line, tokenizer, f"--text {path}, line {number}") for number, line in lines]


def _from_line(line: str, tokenizer: Tokenizer, where: str) -> Document:
    try:
        value: Any = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str):
        given = tokenizer.encode(value["prompt"])
        return Document(given + tokenizer.encode(value["completion"], add_special_tokens=False), len(given))
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ConfigError(f'{where}: must be a string, {{"text": ...}} or {{"prompt": ..., "completion": ...}}')
    return Document(tokenizer.encode(text))


def random_documents(num_tokens: int, *, context: int, vocab_rows: int, seed: int) -> list[Document]:
    """As many texts of `context` random ids as hold `num_tokens` predictions."""
    count = -(-num_tokens // (context - 1))
    return [Document(ids) for ids in random_prompts(count, low=context, high=context, vocab_rows=vocab_rows, seed=seed)]


def windows(documents: Sequence[Document], *, context: int, num_tokens: int) -> list[Document]:
    """Documents cut to at most `context` tokens, the first ones that hold about `num_tokens` predictions.

    Each window but a document's first begins with the last token of the one before, so that no prediction is left out.
    """
    found: list[Document] = []
    left = num_tokens
    for window in itertools.chain.from_iterable(_cut(document, context) for document in documents):
        if left <= 0:
            break
        kept = Document(window.token_ids[: len(window.token_ids) - max(0, window.num_judged - left)], window.num_given)
        if kept.num_judged:
            found.append(kept)
            left -= kept.num_judged
    return found


def _cut(document: Document, context: int) -> Iterator[Document]:
    for start in range(0, max(1, len(document.token_ids) - 1), context - 1):
        yield Document(document.token_ids[start : start + context], max(1, document.num_given - start))
