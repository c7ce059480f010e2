"""Int8 rows: half a step of error at most, scales beside the numbers, and what is no number stays none."""

from __future__ import annotations

import math

import pytest
import torch

from quire.attention.int8_rows import SCALE_BYTES, from_int8_rows, to_int8_rows


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_each_number_is_off_by_at_most_half_a_scale():
    x = random(50, 3, 20) * 10.0 ** torch.arange(-25, 25).view(-1, 1, 1)
    rows = to_int8_rows(x)
    assert rows.dtype == torch.int8 and rows.shape == (50, 3, 20 + SCALE_BYTES)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((from_int8_rows(rows) - x).abs() <= step * 0.5001).all()


def test_the_largest_number_of_a_head_is_kept_and_zeros_stay_zero():
    x = torch.zeros(2, 1, 8)
    x[0, 0, 3] = -4.0
    assert torch.equal(from_int8_rows(to_int8_rows(x)), x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_head_with_what_is_no_number_becomes_nan_and_others_do_not(bad):
    x = random(2, 2, 8)
    x[1, 0, 5] = bad
    found = from_int8_rows(to_int8_rows(x))
    assert found[1, 0].isnan().all()
    assert found[0].isfinite().all() and found[1, 1].isfinite().all()
