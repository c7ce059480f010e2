"""The seam between models and paged attention: what a backend is told (`AttentionBatch`, `AttentionSpec`) and must do.

A backend plans a step once (`plan`) and runs every layer against that plan (`run`). It writes the step's K and V into
their pages before it attends, so a query sees its own token. Dimension letters are those of `ops/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The structure of one layer's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor on q·k before the softmax (and before the soft cap)."""
    window: int | None = None
    """A query at position i sees keys at positions > i - window; None sees all before it."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2, 2024)."""
    alibi_slopes: tuple[float, ...] | None = None
    """Per query head: adds slope * key_position to the score (Press et al., ALiBi, 2021); shift-equivalent to
    slope * (key_position - query_position)."""
    alibi_before_scale: bool = False
    """ALiBi as Falcon computes it: scale * (q·k + slope * key_position), where slope, position and their product are
    each rounded to bfloat16 (so it is not shift-equivalent)."""
    bidirectional: bool = False
    """A query sees all keys of its row, later ones too; has no window or ALiBi, and its row is computed in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """One step's rows as host integers and device tables. R rows, T tokens, tokens of a row contiguous and in order."""

    query_lens: Sequence[int]
    """[R] tokens each row computes, ≥ 1."""
    context_lens: Sequence[int] | np.ndarray
    """[R] tokens each row has KV for after the step (so the first query's position is context - query)."""
    page_tables: torch.Tensor
    """[R, max pages in the batch] int32, entries past a row's pages are 0 and never read."""
    slot_mapping: torch.Tensor
    """[T] int64: page * page_size + offset where each token's K and V go."""
    page_size: int


class AttentionPlan(Protocol):
    """What a backend prepared for one step; opaque to models, which hand it from layer to layer."""


class AttentionBackend(Protocol):
    """Paged attention on one device."""

    name: str

    def kv_shape(
        self, num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
    ) -> tuple[int, ...]:
        """Shape of one layer's KV tensor in `dtype`, K and V together; its first two dimensions are [2, P]."""

    def plan(self, batch: AttentionBatch) -> AttentionPlan:
        """Prepare a step; called once, before the first layer."""

    def advance(self, plan: AttentionPlan, batch: AttentionBatch) -> AttentionPlan:
        """The plan of the step after that of `plan`, where each row of `batch` decodes once more.

        `plan` was made of the same batch, whose context lengths, page tables and slots were changed in place since.
        """

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        kv: torch.Tensor,
        spec: AttentionSpec,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Write k, v [T, K, D] into `kv` [2, P, ...] and attend with q [T, H, D]; returns [T, H, D]."""
