"""Wire types of the endpoints that answer with numbers: embeddings, pooling, classification, scores and reranking.

`/v1/embeddings` is OpenAI's; the others are shaped like vLLM's, and reranking like Jina's and Cohere's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from quire.protocol.common import MAX_TOKEN_IDS, NonEmpty, TokenIds
from quire.protocol.completions import MAX_PROMPTS
from quire.protocol.effects import NO_EFFECT

Inputs = str | Annotated[list[str | int | TokenIds], Meta(min_length=1, max_length=MAX_TOKEN_IDS)]
"""One text, one list of token ids, or a list of either kind."""
Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_PROMPTS)]


class VectorFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields that all these endpoints take."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    """Cut longer inputs to so many tokens, special ones included; -1 means the model's length."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: NonEmpty | None = None
    user: Annotated[str | None, NO_EFFECT] = None


class EmbeddingRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `/v1/embeddings` and of `/pooling`."""

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None


class ClassifyRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `/classify`."""

    input: Inputs
    add_special_tokens: bool | None = None


class ScoreRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `/score`: one text with each of several, or two lists text by text."""

    text_1: Texts
    text_2: Texts


class RerankDocument(msgspec.Struct, forbid_unknown_fields=True):
    """A document, as an object."""

    text: str


class RerankRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """The body of `/rerank`: documents to be put in the order of how well they fit a query."""

    query: str
    documents: Annotated[list[str | RerankDocument], Meta(min_length=1, max_length=MAX_PROMPTS)]
    top_n: int | None = None
    return_documents: bool | None = None


class VectorUsage(msgspec.Struct):
    """Tokens that were read; nothing is generated."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """One input's numbers, or their float32 bytes (little-endian) in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingResponse(msgspec.Struct):
    """The embeddings in the order of the inputs."""

    data: list[Embedding]
    model: str
    usage: VectorUsage
    object: str = "list"


class PooledData(msgspec.Struct):
    """One input's raw numbers."""

    index: int
    data: list[float] | str
    object: str = "pooling"


class PoolingResponse(msgspec.Struct, kw_only=True):
    """Raw numbers in the order of the inputs."""

    id: str
    created: int
    model: str
    data: list[PooledData]
    usage: VectorUsage
    object: str = "list"


class Classification(msgspec.Struct):
    """One input's most likely label and every label's probability."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyResponse(msgspec.Struct, kw_only=True):
    """Classifications in the order of the inputs."""

    id: str
    created: int
    model: str
    data: list[Classification]
    usage: VectorUsage
    object: str = "list"


class Score(msgspec.Struct):
    """How well one pair fits."""

    index: int
    score: float
    object: str = "score"


class ScoreResponse(msgspec.Struct, kw_only=True):
    """Scores in the order of the pairs."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: VectorUsage
    object: str = "list"


class RerankResult(msgspec.Struct):
    """One document's place among those sent, and its score."""

    index: int
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class RerankResponse(msgspec.Struct, kw_only=True):
    """Documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: VectorUsage
