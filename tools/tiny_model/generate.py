"""Greedy replies straight from the PyTorch network, for validation during training.

Knows: batched decoding with a key-value cache. Does not know: tasks and scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tools.tiny_model.corpus.types import Message, Tool
from tools.tiny_model.model import TinyLlama
from tools.tiny_model.tokenizer import Encoder
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """What a client sends: the messages so far and the tools."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Reply:
    """The text of a reply and whether the model ended it by itself."""

    text: str
    ended: bool


class Chat(Protocol):
    """Anything that answers prompts greedily."""

    def replies(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply]:
        """Returns one reply to every prompt, in order."""
        ...


class TorchChat:
    """Answers with the training network."""

    def __init__(self, model: TinyLlama, encoder: Encoder, batch: int = 40) -> None:
        self.model = model
        self.encoder = encoder
        self.batch = batch

    def replies(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply]:
        """Returns one reply to every prompt, in order; prompts of like length share a batch."""
        ids = [self.encoder.prompt_ids(p.messages, p.tools) for p in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
        found: dict[int, Reply] = {}
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            for index, reply in zip(chosen, self._decode([ids[i] for i in chosen], max_tokens), strict=True):
                found[index] = reply
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _decode(self, rows: list[list[int]], max_tokens: int) -> list[Reply]:
        device = self.model.model.embed_tokens.weight.device
        width = max(map(len, rows))
        pads = torch.tensor([width - len(row) for row in rows], device=device)
        ids = torch.tensor([[self.encoder.pad_id] * (width - len(r)) + r for r in rows], device=device)
        keys = torch.arange(width + max_tokens, device=device)
        seen = keys[None] >= pads[:, None]
        positions = (keys[None, :width] - pads[:, None]).clamp(min=0)
        causal = keys[None, :width] <= keys[:width, None]
        mask = seen[:, None, None, :width] & causal[None, None]
        # A padded row sees itself, since an empty row of scores has no softmax.
        mask = mask | torch.eye(width, dtype=torch.bool, device=device)
        hidden, cache = self.model.hidden(ids, positions, mask=mask)
        written: list[Tensor] = []
        done = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for step in range(max_tokens):
            token = self.model.logits(hidden[:, -1]).argmax(dim=-1)
            written.append(token)
            done |= token == self.encoder.end_id
            if bool(done.all()) or step == max_tokens - 1:
                break
            at = width + step
            hidden, cache = self.model.hidden(
                token[:, None], (at - pads)[:, None], cache, seen[:, None, None, : at + 1]
            )
        return [self._reply(row) for row in torch.stack(written, dim=1).tolist()]

    def _reply(self, ids: list[int]) -> Reply:
        ended = self.encoder.end_id in ids
        if ended:
            ids = ids[: ids.index(self.encoder.end_id)]
        return Reply(self.encoder.decode(ids), ended)
