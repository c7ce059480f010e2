"""How a checkpoint pools when a request does not say: by sentence-transformers' files, else by what it is."""

from __future__ import annotations

from quire.base.pooling import PoolingModel
from quire.layers.config import DecoderConfig, EncoderConfig
from quire.models.sentence_files import SentenceFiles


def pooling_of(
    config: DecoderConfig | EncoderConfig | None, hidden_size: int | None, sentence: SentenceFiles | None
) -> PoolingModel | None:
    """What a model makes of a prompt without generating; None where nothing is known of its hidden states.

    Without files a decoder gives its last token's state, the only one that saw the whole prompt, and an encoder the
    mean of all; both are scaled to length 1, as OpenAI's embeddings are.
    """
    if isinstance(config, EncoderConfig) and config.labels:
        return PoolingModel(
            task="classify",
            kind="cls",
            size=len(config.labels),
            generates=False,
            labels=config.labels,
            activation=config.label_activation,
            tells_segments=config.num_token_types > 1,
        )
    if hidden_size is None:
        return None
    is_encoder = isinstance(config, EncoderConfig)
    kind, normalizes = ("mean" if is_encoder else "last", True)
    if sentence is not None:
        kind, normalizes = sentence.kind, sentence.normalizes
    return PoolingModel(task="embed", kind=kind, normalizes=normalizes, size=hidden_size, generates=not is_encoder)
