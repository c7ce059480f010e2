"""The observed rate of a queue, in virtual time."""

from __future__ import annotations

import pytest

from quire.base.drain import HALF_LIFE, DrainMeter


def test_the_rate_is_that_of_the_time_in_which_something_waited():
    """REL-8: an idle night does not make tomorrow's estimate long."""
    meter = DrainMeter(0.0)
    for i in range(20):
        start = 1000.0 * i
        meter.enter(5, start)
        meter.leave(5, start + 0.5, is_served=True)
    assert meter.rate(20_000.0) == pytest.approx(2.0)
    assert meter.seconds_for(10, 20_000.0) == pytest.approx(5.0)
    assert (meter.num_waiting, meter.num_tokens) == (0, 0)


def test_a_slower_rate_is_noticed_within_some_half_lives():
    meter = DrainMeter(0.0)
    meter.enter(1, 0.0)
    for i in range(100):
        meter.enter(1, i * 0.1)
        meter.leave(1, i * 0.1 + 0.1, is_served=True)
    assert meter.rate(10.0) == pytest.approx(10.0, rel=0.01)
    assert meter.rate(10.0 + 4 * HALF_LIFE) < 1.0


def test_who_gives_up_does_not_count_as_served():
    meter = DrainMeter(0.0)
    meter.enter(7, 0.0)
    meter.correct(3)
    assert meter.num_tokens == 10
    meter.leave(10, 2.0, is_served=False)
    assert meter.rate(2.0) is None and meter.seconds_for(3, 2.0) is None
    assert meter.num_tokens == 0 and meter.seconds_busy == pytest.approx(2.0)
