"""Inputs that are advanced from step to step are those that would have been made anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quire.base.sampling import SamplingParams
from quire.base.step import NewRow, SchedulerOutput
from quire.runner.input_batch import InputBatch, RunnerLimits
from quire.runner.step_inputs import SPARE_PAGES

PAGE = 4


class Steps:
    """Two batches that take the same steps, one of which advances its inputs; rows decode on pages of their own."""

    def __init__(self, device) -> None:
        limits = RunnerLimits(max_num_seqs=6, max_model_len=200, page_size=PAGE, vocab_size=100)
        self.batch, self.fresh = InputBatch(limits, device), InputBatch(limits, device)
        self.lengths: dict[int, int] = {}
        self.num_pages = 0

    def new(self, row, length):
        self.lengths[row] = length
        pages = [self._page() for _ in range(-(-length // PAGE))]
        return NewRow(
            row=row, token_ids=[row] * length, num_prompt_tokens=length, page_ids=pages, params=SamplingParams(), seed=0
        )

    def decode(self, rows, *, new_rows=()):
        """The step in which these rows decode, the new ones their last token."""
        fresh = {new.row for new in new_rows}
        work = SchedulerOutput(step=0, rows=list(rows), starts=[], num_scheduled=[1] * len(rows), samples=[])
        work.samples, work.new_rows = [True] * len(rows), list(new_rows)
        for row in rows:
            self.lengths[row] += row not in fresh
            start = self.lengths[row] - 1
            work.starts.append(start)
            if row not in fresh and start % PAGE == 0:
                work.page_appends.append((row, self._page()))
        return work

    def take(self, work):
        """The inputs of both; whether those of the first were advanced."""
        before = self.batch._decode
        for batch in (self.batch, self.fresh):
            batch.start(work)
            batch.extend(work)
        self.fresh._decode = None
        inputs, expected = self.batch.build(work), self.fresh.build(work)
        assert_same(inputs, expected)
        return self.batch._decode is before

    def _page(self):
        self.num_pages += 1
        return self.num_pages


def assert_same(inputs, expected):
    for name in ("places", "positions"):
        assert torch.equal(getattr(inputs, name), getattr(expected, name)), name
    ours, theirs = inputs.attention, expected.attention
    assert list(ours.query_lens) == list(theirs.query_lens)
    assert np.array_equal(ours.context_lens, theirs.context_lens)
    assert torch.equal(ours.slot_mapping, theirs.slot_mapping)
    used = -(-int(max(theirs.context_lens)) // PAGE)
    assert torch.equal(ours.page_tables[:, :used], theirs.page_tables[:, :used])
    for name in ("row_index", "position_index", "places"):
        assert torch.equal(getattr(inputs.draws, name), getattr(expected.draws, name)), name
    assert np.array_equal(inputs.draws.rows, expected.draws.rows)
    assert np.array_equal(inputs.draws.positions, expected.draws.positions)


@pytest.fixture
def steps(device):
    return Steps(device)


def test_rows_that_go_on_are_advanced_over_borders_of_pages_and_made_anew_once_the_tables_are_full(steps):
    started = [steps.new(row, length) for row, length in ((3, 5), (0, 12), (1, 8))]
    assert not steps.take(steps.decode((3, 0, 1), new_rows=started))
    advanced = [steps.take(steps.decode((3, 0, 1))) for _ in range(60)]
    assert advanced.count(False) == 60 // (PAGE * (SPARE_PAGES + 1)), "the longest row outgrows its line now and then"


def test_rows_that_come_leave_or_change_places_are_not_advanced(steps):
    steps.take(steps.decode((0, 1, 2), new_rows=[steps.new(row, 5) for row in range(3)]))
    assert steps.take(steps.decode((0, 1, 2)))
    assert not steps.take(steps.decode((0, 2)))
    assert steps.take(steps.decode((0, 2)))
    assert not steps.take(steps.decode((2, 0)))
    assert not steps.take(steps.decode((2, 0, 4), new_rows=[steps.new(4, 7)]))


def test_a_request_in_the_row_of_another_of_the_same_length_is_not_taken_for_it(steps):
    steps.take(steps.decode((0, 1), new_rows=[steps.new(0, 5), steps.new(1, 6)]))
    work = steps.decode((0, 1), new_rows=[steps.new(1, 7)])
    work.freed_rows = [1]
    assert not steps.take(work)


def test_a_request_that_was_prefilled_meanwhile_is_not_taken_for_the_one_before(steps):
    steps.take(steps.decode((0,), new_rows=[steps.new(0, 5)]))
    new = steps.new(0, 6)
    prefill = SchedulerOutput(
        step=0, rows=[0], starts=[0], num_scheduled=[5], samples=[True], new_rows=[replace(new, token_ids=[1] * 5)]
    )
    prefill.freed_rows = [0]
    steps.take(prefill)
    steps.lengths[0] = 5
    assert not steps.take(steps.decode((0,)))


def test_a_page_that_was_replaced_is_written_instead_of_the_shared_one(steps):
    steps.take(steps.decode((0, 1), new_rows=[steps.new(0, 5), steps.new(1, 6)]))
    work = steps.decode((0, 1))
    work.page_replacements = [(1, 1, 90)]
    assert not steps.take(work)
    assert steps.batch._decode.inputs.attention.slot_mapping[1] == 90 * PAGE + 2


def test_a_step_that_draws_from_some_rows_only_is_no_decode(steps):
    steps.take(steps.decode((0, 1), new_rows=[steps.new(0, 5), steps.new(1, 6)]))
    work = steps.decode((0, 1))
    work.samples = [True, False]
    assert not steps.take(work)
    assert steps.batch._decode is None
