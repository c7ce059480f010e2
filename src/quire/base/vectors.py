"""What the offline calls return for prompts that became vectors, shaped like vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class PoolingOutput:
    """The numbers as the model gives them: an embedding, or a logit per label."""

    data: list[float]


@dataclass(slots=True)
class EmbeddingOutput:
    """An embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """How many numbers it has."""
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A probability per label, in the order of the labels' numbers."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts fit: higher is better."""

    score: float


@dataclass(slots=True, kw_only=True)
class VectorRequestOutput(Generic[T]):
    """One prompt and what became of it."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: T
    num_cached_tokens: int = 0
    finished: bool = True
