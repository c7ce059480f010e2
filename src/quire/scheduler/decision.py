"""One step's decision while it is made: budget, pages promised, and the arrays of `SchedulerOutput` as they fill."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.base.request import Request
from quire.base.step import NewRow, SchedulerOutput
from quire.cache.manager import Allocation
from quire.scheduler.budget import TokenBudget
from quire.scheduler.fair import TenantShare


@dataclass(slots=True, kw_only=True)
class Decision:
    """What has been decided for the step so far."""

    work: SchedulerOutput
    budget: TokenBudget
    requests: list[Request] = field(default_factory=list)
    """Runs parallel to `work.rows`."""
    num_reserved_pages: int = 0
    """Available pages that the rest of started prefills will need."""
    recomputed: dict[Request, int] = field(default_factory=dict)
    """Tokens of the step that a preempted request had computed before."""
    due: TenantShare | None = None
    """The tenant for which prefill tokens are held."""
    is_short_of_pages: bool = False
    """A running request was preempted or could not go on: nothing is admitted."""

    def extend(self, request: Request, num_tokens: int, allocation: Allocation) -> None:
        """Schedule the next tokens of a request that has a row."""
        row = request.row
        assert row is not None
        work = self.work
        if allocation.new_pages:
            work.page_appends += [(row, page) for page in allocation.new_pages]
        if allocation.copies:
            work.page_copies += allocation.copies
            work.page_replacements += [(row, position, page) for position, page in allocation.replacements]
        self._append(request, row, num_tokens)

    def start(self, request: Request, num_tokens: int, *, page_ids: list[int], allocation: Allocation) -> None:
        """Schedule the first tokens of a request that just got its row."""
        row = request.row
        assert row is not None
        self.work.page_copies += allocation.copies
        self.work.new_rows.append(
            NewRow(
                row=row,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                page_ids=list(page_ids),
                params=request.params,
                seed=request.seed,
                stop_ids=tuple(sorted(request.eos_token_ids | request.stop_token_ids)),
                bad_words=tuple(map(tuple, request.bad_words_token_ids)),
                is_constrained=request.constraint is not None,
                pooling=request.pooling,
            )
        )
        self._append(request, row, num_tokens)

    def _append(self, request: Request, row: int, num_tokens: int) -> None:
        """Enter the tokens in the arrays and count them as computed: steps run in order, so later ones may."""
        work, start = self.work, request.num_computed_tokens
        samples = start + num_tokens == request.num_tokens
        self.requests.append(request)
        work.rows.append(row)
        work.starts.append(start)
        work.num_scheduled.append(num_tokens)
        work.samples.append(samples)
        constraint = request.constraint
        if samples and constraint is not None and constraint.num_free <= request.num_in_flight:
            work.constraints.append((row, constraint))
        request.num_computed_tokens = start + num_tokens
        request.num_in_flight += samples
