"""Raw bytes of single tokens, for the decoders whose text is the concatenation of its tokens' bytes.

Byte-level BPE spells each byte as one printable character; SentencePiece-style vocabularies spell a space as a mark
and a lone byte as `<0xE2>`. A decoder of any other kind (WordPiece, word-end marks) has no such bytes and gets no
`BytePlan`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

LeadingSpace = Literal["keep", "strip_one", "drop_in_first_token"]
"""What happens to spaces at the very start of a text: nothing, one is removed, or the first token loses all."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_characters() -> dict[str, int]:
    """The byte-level alphabet (Radford et al., GPT-2, 2019): printable Latin-1 is itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_characters()


@dataclass(frozen=True, slots=True)
class BytePlan:
    """How the token strings of one vocabulary become bytes."""

    spell: Callable[[str], bytes]
    """Bytes of a token that is not the first of its text."""
    leading_space: LeadingSpace
    space_mark: str = "▁"
    errors: str = "replace"
    """Error handler for ill-formed UTF-8, so that the text agrees with what the library's decoder makes of it."""


def byte_plan(decoder: dict[str, Any] | None) -> BytePlan | None:
    """The plan for a decoder in the fields of tokenizer.json, None where tokens have no bytes of their own."""
    if decoder is None:
        return None
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return BytePlan(_byte_level, "keep")
    if kinds == ["Metaspace"]:
        return _metaspace(steps[0])
    return _sentencepiece(steps)


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flatten(part)]


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        # An added token may hold characters outside the alphabet; it then stands for its own text.
        return token.encode("utf-8")


def _metaspace(step: dict[str, Any]) -> BytePlan:
    mark = str(step.get("replacement", "▁"))
    keeps = step.get("prepend_scheme", "always") == "never"
    return BytePlan(_replacing(mark, " ", has_bytes=False), "keep" if keeps else "drop_in_first_token", mark)


def _sentencepiece(steps: list[dict[str, Any]]) -> BytePlan | None:
    """Replace(mark, space), then ByteFallback, Fuse and Strip of one leading space, each optional, in this order."""
    rest = list(steps)
    if not rest or rest[0]["type"] != "Replace" or "String" not in rest[0].get("pattern", {}):
        return None
    mark, space = str(rest[0]["pattern"]["String"]), str(rest[0]["content"])
    del rest[0]
    has_bytes = _take(rest, "ByteFallback") is not None
    fused = _take(rest, "Fuse") is not None
    strip = _take(rest, "Strip") if fused else None
    if rest:
        return None
    if strip is None:
        leading: LeadingSpace = "keep"
    elif (strip["content"], strip["start"], strip["stop"]) == (" ", 1, 0):
        leading = "strip_one"
    else:
        return None
    errors = "quire.each_byte" if has_bytes else "replace"
    return BytePlan(_replacing(mark, space, has_bytes=has_bytes), leading, mark, errors)


def _take(steps: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return steps.pop(0) if steps and steps[0]["type"] == kind else None


def _replacing(mark: str, space: str, *, has_bytes: bool) -> Callable[[str], bytes]:
    def spell(token: str) -> bytes:
        if has_bytes and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(mark, space).encode("utf-8")

    return spell
