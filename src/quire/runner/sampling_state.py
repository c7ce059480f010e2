"""Sampling state of all rows, one array per parameter, so that a decode step touches no per-request objects.

Numbers live on the device and are written when a row starts. The host keeps only what decides which work a step needs:
flags by row, and `RowControls` for the few rows with token lists. This file draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quire.base.sampling import SamplingParams
from quire.base.step import NewRow
from quire.ops import sampling as ops
from quire.runner.device import Device

_NOT_ASKED = -2
_MIN_REPETITION = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class BadWords:
    """Token sequences that must not be completed, as tables of one width, aligned to the right."""

    prefixes: Tensor
    """[words, width] int64: all but the last token, -1 to the left of it."""
    lengths: Tensor
    """[words] int64: tokens of each prefix."""
    last: Tensor
    """[words] int64: the token that would complete the word."""

    def completing(self, output: Tensor) -> Tensor:
        """Which words' last token must not follow `output` [n]: [words] bool."""
        width = self.prefixes.shape[1]
        tail = output[max(0, output.shape[0] - width) :]
        tail = torch.nn.functional.pad(tail, (width - tail.shape[0], 0), value=-1)
        matches = (self.prefixes < 0) | (self.prefixes == tail)
        return matches.all(-1) & (self.lengths <= output.shape[0])


@dataclass(slots=True, kw_only=True)
class RowControls:
    """A row's lists of token ids, on the device; ids outside the vocabulary were dropped (they can never be drawn)."""

    allowed: Tensor | None
    bias_ids: Tensor
    bias: Tensor
    stop_ids: Tensor
    bad_words: BadWords | None
    num_prompt: int
    min_tokens: int
    """Output tokens before a stop id may be drawn."""


class DrawColumns(NamedTuple):
    """The parameters of some rows, in the order of the rows; on the device."""

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor

    def draw(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Draw a token per row of logits [R, V] for these positions [R]: ids [R] int64."""
        return ops.draw(
            logits,
            temperature=self.temperature,
            min_p=self.min_p,
            top_k=self.top_k,
            top_p=self.top_p,
            uniform=ops.uniform(self.seeds, positions),
        )


class SamplingState:
    """How each row draws its tokens."""

    def __init__(self, *, device: Device, max_num_seqs: int, vocab_size: int) -> None:
        self._device = device
        self.vocab_size = vocab_size
        place = device.torch_device
        # On the device, by row.
        self.temperature = torch.ones(max_num_seqs, dtype=torch.float32, device=place)
        self.penalties = torch.zeros(max_num_seqs, 3, dtype=torch.float32, device=place)  # repetition, presence, freq.
        self.top_p = torch.ones(max_num_seqs, dtype=torch.float64, device=place)
        self.min_p = torch.zeros(max_num_seqs, dtype=torch.float64, device=place)
        self.top_k = torch.zeros(max_num_seqs, dtype=torch.int64, device=place)
        self.seeds = torch.zeros(max_num_seqs, dtype=torch.int64, device=place)
        self.num_prompt = torch.zeros(max_num_seqs, dtype=torch.int64, device=place)
        # On the host, by row: which work a step needs.
        self.is_random = np.zeros(max_num_seqs, dtype=bool)
        self.has_penalty = np.zeros(max_num_seqs, dtype=bool)
        self.has_controls = np.zeros(max_num_seqs, dtype=bool)
        self.num_logprobs = np.full(max_num_seqs, _NOT_ASKED, dtype=np.int64)
        self.num_prompt_logprobs = np.full(max_num_seqs, _NOT_ASKED, dtype=np.int64)
        self.asks_for_prompt = False
        """Whether any row wants log-probabilities of its prompt."""
        self.prompt_lengths = np.zeros(max_num_seqs, dtype=np.int64)
        self.controls: dict[int, RowControls] = {}
        self._columns: tuple[bytes, DrawColumns] | None = None  # of the last rows asked for: mostly the next ones too

    def columns(self, rows: np.ndarray) -> DrawColumns:
        """The parameters that rows draw with."""
        key = rows.tobytes()
        if self._columns is None or self._columns[0] != key:
            index = self._device.upload(rows)
            columns = (self.temperature, self.min_p, self.top_k, self.top_p, self.seeds)
            self._columns = key, DrawColumns(*(column[index] for column in columns))
        return self._columns[1]

    def add(self, new_rows: Sequence[NewRow]) -> None:
        """Set the rows that start; what a former owner left is overwritten."""
        if not new_rows:
            return
        self._columns = None
        rows = np.array([new.row for new in new_rows], dtype=np.int64)
        params = [new.params for new in new_rows]
        index = self._device.upload(rows)
        self._set(self.temperature, index, [1.0 if p.is_greedy else p.temperature for p in params])
        self._set(self.penalties, index, [_penalties(p) for p in params])
        self._set(self.top_p, index, [p.top_p for p in params])
        self._set(self.min_p, index, [p.min_p for p in params])
        self._set(self.top_k, index, [p.top_k for p in params])
        self._set(self.seeds, index, [_as_int64(new.seed) for new in new_rows])
        self._set(self.num_prompt, index, [new.num_prompt_tokens for new in new_rows])
        self.prompt_lengths[rows] = [new.num_prompt_tokens for new in new_rows]
        self.is_random[rows] = [not p.is_greedy for p in params]
        self.has_penalty[rows] = [_penalties(p) != (1.0, 0.0, 0.0) for p in params]
        self.num_logprobs[rows] = [_count(p.logprobs, self.vocab_size) for p in params]
        self.num_prompt_logprobs[rows] = [_count(p.prompt_logprobs, self.vocab_size) for p in params]
        self.asks_for_prompt = bool((self.num_prompt_logprobs >= 0).any())
        for new in new_rows:
            self._set_controls(new)

    def remove(self, rows: Sequence[int]) -> None:
        """Forget rows, so that their flags cause no work."""
        for row in rows:
            self.controls.pop(row, None)
        self.has_controls[list(rows)] = False
        self.num_prompt_logprobs[list(rows)] = _NOT_ASKED
        self.asks_for_prompt = bool((self.num_prompt_logprobs >= 0).any())

    def _set(self, target: Tensor, index: Tensor, values: Sequence[object]) -> None:
        host = torch.tensor(values, dtype=target.dtype).numpy()
        target.index_copy_(0, index, self._device.upload(host))

    def _set_controls(self, new: NewRow) -> None:
        params = new.params
        stop_ids = new.stop_ids if params.min_tokens else ()
        wanted = params.allowed_token_ids is not None or params.logit_bias or new.bad_words or stop_ids
        self.has_controls[new.row] = bool(wanted)
        if not wanted:
            self.controls.pop(new.row, None)
            return
        bias = {token: value for token, value in (params.logit_bias or {}).items() if 0 <= token < self.vocab_size}
        self.controls[new.row] = RowControls(
            allowed=None if params.allowed_token_ids is None else self._ids(params.allowed_token_ids),
            bias_ids=self._ids(bias),
            bias=self._device.upload(np.array(list(bias.values()), dtype=np.float32)),
            stop_ids=self._ids(stop_ids),
            bad_words=self._bad_words(new.bad_words),
            num_prompt=new.num_prompt_tokens,
            min_tokens=params.min_tokens,
        )

    def _bad_words(self, words: Sequence[Sequence[int]]) -> BadWords | None:
        words = [word for word in words if word and all(0 <= token < self.vocab_size for token in word)]
        if not words:
            return None
        prefixes = np.full((len(words), max(map(len, words)) - 1), -1, dtype=np.int64)
        for line, word in zip(prefixes, words, strict=True):
            line[len(line) - len(word) + 1 :] = word[:-1]
        upload = self._device.upload
        lengths = np.array([len(word) - 1 for word in words], dtype=np.int64)
        return BadWords(upload(prefixes), upload(lengths), upload(np.array([word[-1] for word in words], np.int64)))

    def _ids(self, token_ids: Iterable[int]) -> Tensor:
        """The ids within the vocabulary, on the device."""
        valid = [token for token in token_ids if 0 <= token < self.vocab_size]
        return self._device.upload(np.array(valid, dtype=np.int64))


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    return (max(params.repetition_penalty, _MIN_REPETITION), params.presence_penalty, params.frequency_penalty)


def _as_int64(seed: int) -> int:
    """The seed's low 64 bits as a signed number."""
    return (seed + 2**63) % 2**64 - 2**63


def _count(asked: int | None, vocab_size: int) -> int:
    """How many most likely tokens a logprobs setting asks for; -1 means the whole vocabulary."""
    if asked is None:
        return _NOT_ASKED
    return vocab_size if asked < 0 else min(asked, vocab_size)
