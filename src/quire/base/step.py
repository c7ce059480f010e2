"""The contract between the towers: what the scheduler decides for one step and what the device answers.

A running request owns a **row**. The runner mirrors each row's tokens, page table and sampling state, so a step carries
only changes: rows that start, rows that end, pages appended, pages to copy. For a steady decode step that is two short
integer lists. The runner writes sampled tokens into its own rows; the host never sends a decoded token back.

Order within one step, binding for every runner:
1. `freed_rows` are dropped, 2. `page_copies` run, 3. `new_rows` and `page_appends` are applied,
4. the forward pass computes `num_scheduled[i]` tokens of `rows[i]` from position `starts[i]`,
5. rows with `samples[i]` draw one token each, which the runner stores at position `starts[i] + num_scheduled[i]`;
   rows that pool answer with their vector instead. To the scheduler the vector is the request's only token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from quire.base.constraint import TokenConstraint
from quire.base.outputs import TokenLogprobs
from quire.base.pooling import Pooling
from quire.base.sampling import SamplingParams


@dataclass(slots=True, kw_only=True)
class NewRow:
    """A request that starts to run (or runs again after preemption), with all it has so far."""

    row: int
    token_ids: list[int]
    """Prompt and known output tokens."""
    num_prompt_tokens: int
    page_ids: list[int]
    """The whole page table of the row, shared and fresh pages alike."""
    params: SamplingParams
    seed: int
    stop_ids: tuple[int, ...] = ()
    """Ids that may not be drawn before `params.min_tokens` output tokens (end of sequence and stop tokens)."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    is_constrained: bool = False
    """Steps in which the row draws bring its constraint, unless that leaves every token free."""
    pooling: Pooling | None = None
    """Set: the row draws no token, its prompt becomes a vector."""


@dataclass(slots=True, kw_only=True)
class SchedulerOutput:
    """One step's decision. `rows`, `starts`, `num_scheduled`, `samples` run in parallel, an entry per scheduled row."""

    step: int
    rows: list[int]
    starts: list[int]
    """Position of the first token each row computes (its `num_computed_tokens` before the step)."""
    num_scheduled: list[int]
    samples: list[bool]
    """Whether the row reaches its last token and draws the next; False for every chunk but a prompt's last."""
    new_rows: list[NewRow] = field(default_factory=list)
    freed_rows: list[int] = field(default_factory=list)
    page_appends: list[tuple[int, int]] = field(default_factory=list)
    """(row, page) in order: the page goes to the end of the row's table. Pages of `new_rows` are not repeated here."""
    page_replacements: list[tuple[int, int, int]] = field(default_factory=list)
    """(row, position in the page table, new page) after copy-on-write of a shared page of a running row."""
    page_copies: list[tuple[int, int]] = field(default_factory=list)
    """(source, destination) pages, copied whole, all layers, before anything is written."""
    constraints: list[tuple[int, TokenConstraint]] = field(default_factory=list)
    """(row, constraint) of the rows that draw under one now; the runner asks for its mask while the device computes."""

    @property
    def num_tokens(self) -> int:
        """T, the tokens in the step."""
        return sum(self.num_scheduled)


class RowFailure(NamedTuple):
    """Why a row has no valid result."""

    reason: str
    error_kind: str = "StepError"
    """The class of `base/errors.py` that the request ends with."""


@dataclass(slots=True, kw_only=True)
class SampledTokens:
    """The device's answer. Lists run parallel to `SchedulerOutput.rows`."""

    token_ids: list[list[int]]
    """New tokens per scheduled row: empty where nothing was sampled, several once tokens are speculated."""
    logprobs: list[list[TokenLogprobs] | None] | None = None
    """None when no row asked; else per row one entry per new token, or None."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """By position in `rows`: log-probabilities of the prompt tokens at positions starts+1 .. starts+num_scheduled
    (as far as they are prompt tokens) for rows that asked."""
    pooled: dict[int, bytes] = field(default_factory=dict)
    """By position in `rows`: the vectors of rows that pool and are complete, as little-endian float32."""
    failed_rows: dict[int, RowFailure] = field(default_factory=dict)
    """By position in `rows`: rows whose computation failed (NaN logits, say), and why; their tokens are not valid."""
