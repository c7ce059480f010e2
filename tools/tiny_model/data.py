"""Training batches as a pure function of seed and step.

Knows: how conversations are padded to batches and how positions are spread.
Does not know: the network. A run resumes at a step without replaying the data before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tools.tiny_model.corpus.mixture import Mixture, make_conversation
from tools.tiny_model.corpus.types import Conversation
from tools.tiny_model.render import START
from tools.tiny_model.tokenizer import Encoder
from torch import Tensor

_LONGEST = 2048
# Rows much shorter than the longest of a batch would be mostly padding.
_LEAST_FILL = 0.75
_BATCH_TOKENS = 1400
# With this probability a gap in the positions makes the start of a conversation look far away.
_GAP_SHARE = 0.3
_GAP_SPAN = 1900.0


@dataclass(frozen=True)
class Batch:
    """Padded rows of ids, their positions and the targets, -100 where nothing is learned."""

    ids: Tensor
    positions: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    positions: list[int]
    targets: list[int]


def conversations_of_step(
    seed: int, step: int, mixture: Mixture, encoder: Encoder, tokens: int
) -> Iterator[tuple[Conversation, list[int], list[bool]]]:
    """Yields the conversations of a step, as many as its token budget holds."""
    index, used = 0, 0
    while used < tokens:
        conversation = make_conversation(random.Random(f"{seed}/train/{step}/{index}"), mixture)
        index += 1
        ids, learned = encoder.training_ids(conversation.messages, conversation.tools)
        if len(ids) > _LONGEST:
            continue
        used += len(ids)
        yield conversation, ids, learned


def _row(ids: list[int], learned: list[bool], start_id: int, rng: random.Random) -> _Row:
    positions = list(range(len(ids) - 1))
    if rng.random() < _GAP_SHARE:
        cuts = [i for i, token in enumerate(ids[:-1]) if token == start_id]
        cut = rng.choice(cuts)
        gap = int(_GAP_SPAN ** rng.random())
        positions = [p + gap if p >= cut else p for p in positions]
    targets = [t if learn else -100 for t, learn in zip(ids[1:], learned[1:], strict=True)]
    return _Row(ids[:-1], positions, targets)


def _pad(rows: list[_Row], pad_id: int) -> Batch:
    width = max(len(row.ids) for row in rows)

    def table(lists: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([values + [filler] * (width - len(values)) for values in lists])

    return Batch(
        table([r.ids for r in rows], pad_id),
        table([r.positions for r in rows], 0),
        table([r.targets for r in rows], -100),
    )


def step_batches(
    seed: int, step: int, mixture: Mixture, encoder: Encoder, tokens: int, *, one_batch: bool = False
) -> list[Batch]:
    """Returns the batches of a step, each of conversations of like length, or one batch of all of them."""
    start_id: int = encoder.tokenizer.token_to_id(START)
    rng = random.Random(f"{seed}/positions/{step}")
    rows = [
        _row(ids, learned, start_id, rng)
        for _, ids, learned in conversations_of_step(seed, step, mixture, encoder, tokens)
    ]
    if one_batch:
        return [_pad(rows, encoder.pad_id)]
    rows.sort(key=lambda row: len(row.ids), reverse=True)
    groups: list[list[_Row]] = []
    for row in rows:
        longest = len(groups[-1][0].ids) if groups else 0
        fits = groups and (len(groups[-1]) + 1) * longest <= _BATCH_TOKENS
        if fits and len(row.ids) >= _LEAST_FILL * longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_pad(group, encoder.pad_id) for group in groups]
