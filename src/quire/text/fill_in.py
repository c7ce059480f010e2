"""Filling in the middle: how a model is asked for what stands between a beginning and an end.

Read off the vocabulary: the families differ in their marks and in the order of the parts (Bavarian et al., Efficient
Training of Language Models to Fill in the Middle, 2022). A model whose vocabulary has a family's marks is taken to
have learned them; nothing else says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quire.text.tokenizer import Tokenizer

_WORD = "\N{WHITE SMILING FACE}"
"""A text that joins no neighbour in a token: behind it a text is spelled as in the midst of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The marks of models that were trained alike. Where `middle` is empty the prefix comes last."""

    name: str
    prefix: str
    suffix: str
    middle: str = ""
    ends: tuple[str, ...] = ()
    """Tokens, besides those that end every sequence, with which the model says that the middle is written."""
    joins_suffix: bool = False
    """The suffix is spelled as in the midst of a text, without the space that the tokenizer puts before every text."""


FAMILIES = (
    Family(
        name="Qwen Coder and CodeGemma",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        ends=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|endoftext|>"),
    ),
    Family(
        name="StarCoder and Granite Code",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        ends=("<fim_pad>", "<repo_name>", "<file_sep>", "<|endoftext|>"),
    ),
    Family(
        name="SantaCoder",
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        ends=("<fim-pad>", "<|endoftext|>"),
    ),
    Family(name="Code Llama", prefix="▁<PRE>", suffix="▁<SUF>", middle="▁<MID>", ends=("▁<EOT>",), joins_suffix=True),
    Family(name="DeepSeek Coder", prefix="<｜fim▁begin｜>", suffix="<｜fim▁hole｜>", middle="<｜fim▁end｜>"),
    Family(name="Codestral", prefix="[PREFIX]", suffix="[SUFFIX]"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FillIn:
    """How one tokenizer writes a request to fill in; ids of its family's marks."""

    family: Family
    prefix_id: int
    suffix_id: int
    middle_id: int | None
    end_ids: tuple[int, ...]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> FillIn | None:
        """The way of the family all of whose marks are tokens of the vocabulary; None where there is no such family."""
        for family in FAMILIES:
            ids = [tokenizer.token_id(mark) for mark in (family.prefix, family.suffix, family.middle) if mark]
            known = [token_id for token_id in ids if token_id is not None]
            if len(known) == len(ids):
                ends = (tokenizer.token_id(end) for end in family.ends)
                return cls(
                    family=family,
                    prefix_id=known[0],
                    suffix_id=known[1],
                    middle_id=known[2] if family.middle else None,
                    end_ids=tuple(end for end in ends if end is not None),
                    tokenizer=tokenizer,
                )
        return None

    def prompt(self, prefix: str | list[int], suffix: str, *, adds_bos: bool) -> list[int]:
        """Token ids of the question what stands between two texts; a prefix of ids is taken as it is.

        Raises:
            InvalidRequestError: as `Tokenizer.encode`.
        """
        before = self._spelled(prefix, "prefix") if isinstance(prefix, str) else prefix
        after = self._spelled(suffix, "suffix")
        bos = self._bos() if adds_bos else []
        if self.middle_id is None:
            return [*bos, self.suffix_id, *after, self.prefix_id, *before]
        return [*bos, self.prefix_id, *before, self.suffix_id, *after, self.middle_id]

    def _spelled(self, text: str, part: Literal["prefix", "suffix"]) -> list[int]:
        encode = self.tokenizer.encode
        if part == "prefix" or not self.family.joins_suffix:
            return encode(text, add_special_tokens=False)
        return encode(_WORD + text, add_special_tokens=False)[len(encode(_WORD, add_special_tokens=False)) :]

    def _bos(self) -> list[int]:
        """The token that begins every sequence, where the tokenizer adds one."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer.encode("")[:1] == [bos] else []
