"""The JSON files beside a checkpoint that describe its tokenizer, read once; no vocabulary is touched here.

Knows where special tokens may be declared and which declaration wins (the rules of transformers 5). Nothing in these
files is executed: `auto_map` and other pointers to code are never looked at (SEC-5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.base.errors import ConfigError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens with a role of their own; chat templates see them under these names."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What tokenizer_config.json, special_tokens_map.json and added_tokens.json say."""

    directory: Path
    config: dict[str, Any]
    """tokenizer_config.json, or empty."""
    named: dict[str, str] = field(default_factory=dict)
    """Text of each named token that is set, `NAMED_TOKENS` first, then model-specific `*_token` keys."""
    extra: tuple[str, ...] = ()
    """Further special tokens without a name."""
    added: tuple[dict[str, Any], ...] = ()
    """Declared added tokens in order of id, in the fields of `tokenizers.AddedToken`."""

    @classmethod
    def read(cls, directory: str | Path) -> TokenizerFiles:
        """Read the files of `directory`; missing ones count as empty.

        Raises:
            ConfigError: for a file that is not a JSON object, naming it.
        """
        folder = Path(directory)
        config = read_json(folder / "tokenizer_config.json")
        listed = config.get("added_tokens_decoder")
        # A listed decoder is complete; the older side files only count without one.
        legacy = {} if listed is not None else read_json(folder / "special_tokens_map.json")
        merged = {**config, **legacy}
        extra = merged.get("extra_special_tokens") or merged.get("additional_special_tokens") or []
        named = dict(_named_tokens(merged))
        if isinstance(extra, dict):
            named.update({key: _content(value) for key, value in extra.items()})
            extra = []
        added = _listed_tokens(listed) if listed is not None else _legacy_tokens(folder, named, extra)
        return cls(folder, config, named, tuple(_content(token) for token in extra), tuple(added))

    @property
    def special(self) -> tuple[str, ...]:
        """Text of every token declared special by name or in the list of extras, each once."""
        return tuple(dict.fromkeys((*self.named.values(), *self.extra)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, `{}` when the file is absent; raises ConfigError naming the file when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} in {path.parent} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} in {path.parent} holds a JSON {type(data).__name__}; an object is needed")
    return data


def _content(token: Any) -> str:
    if isinstance(token, dict) and isinstance(token.get("content"), str):
        return str(token["content"])
    if isinstance(token, str):
        return token
    raise ConfigError(f"a special token is {token!r}; tokenizer_config.json needs a string or an object with content")


def _named_tokens(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in NAMED_TOKENS:
        if config.get(key) is not None:
            yield key, _content(config[key])
    for key, value in config.items():
        if key.endswith("_token") and key not in NAMED_TOKENS and isinstance(value, str | dict):
            yield key, _content(value)


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _listed_tokens(listed: Any) -> Iterator[dict[str, Any]]:
    try:
        pairs = sorted((int(token_id), entry) for token_id, entry in listed.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"added_tokens_decoder in tokenizer_config.json must map ids to objects: {error}") from error
    for _, entry in pairs:
        flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
        yield {"content": _content(entry), **flags}


def _legacy_tokens(folder: Path, named: dict[str, str], extra: Any) -> Iterator[dict[str, Any]]:
    special = {*named.values(), *(_content(token) for token in extra)}
    entries = read_json(folder / "added_tokens.json")
    for content in sorted(entries, key=lambda name: int(entries[name])):
        is_special = content in special
        yield {"content": content, "normalized": not is_special, "special": is_special}
