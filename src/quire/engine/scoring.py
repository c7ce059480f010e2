"""How well pairs of texts fit, over any model that pools: a cross-encoder reads both at once, an embedding model each.

Plans which prompts a model must read and turns what came of them into scores. Runs nothing itself, so that the offline
front and the server share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.base.errors import InvalidRequestError
from quire.base.pooling import PoolingModel, from_bytes
from quire.base.scores import activated, cosine
from quire.text.tokenizer import Tokenizer

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """Token ids that a model reads, and where the second text of a pair begins if its types tell."""

    token_ids: list[int]
    second_segment: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringPlan:
    """What `model` must read to score some pairs: both texts of each at once, or each of `texts` by itself."""

    model: PoolingModel
    pairs: tuple[Pair, ...]
    texts: tuple[str, ...] = ()
    """Every text of the pairs once; empty where pairs are read at once."""

    def prompts(self, tokenizer: Tokenizer, *, max_tokens: int) -> list[ReadPrompt]:
        """What is to be read, cut to `max_tokens` where it is longer, as it was in training."""
        if self.texts:
            return [ReadPrompt(tokenizer.encode_cut(text, max_tokens=max_tokens)) for text in self.texts]
        return [ReadPrompt(*tokenizer.encode_pair(*pair, max_tokens=max_tokens)) for pair in self.pairs]

    def scores(self, vectors: Sequence[bytes]) -> list[float]:
        """The pairs' scores in their order, from what the model made of `prompts`."""
        numbers = [from_bytes(vector) for vector in vectors]
        if not self.texts:
            return [activated(logits, self.model.activation)[0] for logits in numbers]
        by_text = dict(zip(self.texts, numbers, strict=True))
        return [cosine(by_text[one], by_text[other]) for one, other in self.pairs]

    def ids_of_pairs(self, prompts: Sequence[ReadPrompt]) -> list[list[int]]:
        """The token ids behind each pair's score."""
        if not self.texts:
            return [prompt.token_ids for prompt in prompts]
        by_text = dict(zip(self.texts, prompts, strict=True))
        return [by_text[one].token_ids + by_text[other].token_ids for one, other in self.pairs]


def plan_scoring(pairs: Sequence[Pair], model: PoolingModel | None) -> ScoringPlan:
    """What a model must read to score these pairs.

    Raises:
        InvalidRequestError: the model scores nothing: it only generates, or it tells several labels apart.
    """
    if model is None or (model.task == "classify" and model.size != 1):
        found = "generates text and gives no vectors" if model is None else f"tells {model.size} labels apart"
        raise InvalidRequestError(
            f"this model {found}; scores need a cross-encoder with one label or an embedding model",
            param="model",
            code="unsupported_task",
        )
    if model.task == "classify":
        return ScoringPlan(model=model, pairs=tuple(pairs))
    texts = dict.fromkeys(text for pair in pairs for text in pair)
    return ScoringPlan(model=model, pairs=tuple(pairs), texts=tuple(texts))


def pair_up(first: str | Sequence[str], second: str | Sequence[str], *, names: tuple[str, str]) -> list[Pair]:
    """One text with each of several, or two lists of one length text by text.

    Raises:
        InvalidRequestError: a list is empty, or lengths do not fit.
    """
    ones = [first] if isinstance(first, str) else list(first)
    others = [second] if isinstance(second, str) else list(second)
    for name, texts in zip(names, (ones, others), strict=True):
        if not texts:
            raise InvalidRequestError(f"{name} is empty; at least one text is needed", param=name)
    if len(ones) == 1:
        ones = ones * len(others)
    if len(ones) != len(others):
        raise InvalidRequestError(
            f"{names[0]} has {len(ones)} texts and {names[1]} has {len(others)}; allowed: one text in {names[0]}, "
            f"or as many as in {names[1]}",
            param=names[1],
        )
    return list(zip(ones, others, strict=True))
