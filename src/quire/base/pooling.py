"""What a request may ask of a model besides text: `PoolingParams`, and `Pooling`, what the engine makes of them.

Pooling turns the hidden states of a prompt into one vector. This file knows the kinds and the limits; how a vector is
computed stands in `runner/pooling.py`, and which kind a checkpoint was trained for in `models/sentence_files.py`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from sys import byteorder
from typing import Literal

from quire.base.errors import InvalidRequestError

POOLING_KINDS = ("last", "mean", "cls", "max")
"""last: the last token's state · mean: of all tokens · cls: the first token's · max: per number the largest."""

Task = Literal["embed", "classify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """How a prompt becomes a vector; what is None is as the model was trained.

    Raises:
        InvalidRequestError: from the constructor, naming the field, what was found and what is allowed.
    """

    pooling: str | None = None
    """One of `POOLING_KINDS`."""
    normalize: bool | None = None
    """Whether the vector is scaled to length 1."""
    dimensions: int | None = None
    """Keep so many leading numbers, before scaling (Kusupati et al., Matryoshka representations, 2022)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be honoured."""
        if self.pooling is not None and self.pooling not in POOLING_KINDS:
            raise InvalidRequestError(
                f"pooling is {str(self.pooling)[:64]!r}; allowed: {', '.join(POOLING_KINDS)}", param="pooling"
            )
        if self.normalize is not None and type(self.normalize) is not bool:
            raise InvalidRequestError(f"normalize must be true or false, found {self.normalize!r}", param="normalize")
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise InvalidRequestError(f"dimensions must be at least 1, found {self.dimensions!r}", param="dimensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """One request's way from hidden states to a vector, every choice made; crosses the process boundary."""

    kind: str
    """One of `POOLING_KINDS`."""
    normalizes: bool = False
    dimensions: int | None = None
    second_segment: int | None = None
    """The first token of the second text where the prompt is a pair and the model tells its texts apart by type."""

    @property
    def reads_every_token(self) -> bool:
        """Whether the vector needs states that a prefix hit would not compute."""
        return self.kind != "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingModel:
    """What a model makes of a prompt without generating."""

    task: Task
    """embed: a vector of hidden numbers; classify: one logit per label."""
    kind: str
    """One of `POOLING_KINDS`: what the checkpoint was trained for."""
    normalizes: bool = False
    """Whether vectors have length 1 unless a request says otherwise."""
    size: int
    """Numbers of an embedding, or labels."""
    generates: bool
    """Whether it also generates text."""
    labels: tuple[str, ...] = ()
    tells_segments: bool = False
    """Whether the tokens of a pair's second text have a type of their own."""
    activation: str = "softmax"
    """What turns logits into what is shown: softmax, sigmoid or identity."""

    def pooling(self, params: PoolingParams, *, second_segment: int | None = None) -> Pooling:
        """What a request's parameters mean for this model.

        Raises:
            InvalidRequestError: the model cannot do what they ask for.
        """
        if not self.tells_segments:
            second_segment = None
        if self.task == "classify":
            self._refuse_for_labels(params)
            return Pooling(kind=self.kind, second_segment=second_segment)
        if params.dimensions is not None and params.dimensions > self.size:
            raise InvalidRequestError(
                f"dimensions is {params.dimensions}; this model's embeddings have {self.size} numbers",
                param="dimensions",
            )
        return Pooling(
            kind=params.pooling or self.kind,
            normalizes=self.normalizes if params.normalize is None else params.normalize,
            dimensions=params.dimensions,
            second_segment=second_segment,
        )

    def _refuse_for_labels(self, params: PoolingParams) -> None:
        for name in ("pooling", "normalize", "dimensions"):
            if getattr(params, name) is not None:
                raise InvalidRequestError(
                    f"{name} shapes embeddings; this model gives one number for each of {self.size} labels", param=name
                )


def from_bytes(vector: bytes) -> list[float]:
    """The numbers of a vector as it comes from the engine: float32, little-endian."""
    numbers = array("f", vector)
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
