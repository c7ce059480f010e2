"""Quotas in virtual time: buckets, reservations and what refusals say."""

from __future__ import annotations

import pytest

from quire.base.errors import RateLimitError
from quire.base.tenancy import DAY, Account, Bucket, Tenant


def account(now=0.0, **limits) -> Account:
    made = Account(Tenant(name="acme", **limits))
    made.adopt(made.tenant, now)
    return made


def test_a_bucket_holds_a_minutes_worth_and_refills_evenly():
    bucket = Bucket(60, now=0.0)
    bucket.take(60, 0.0)
    assert bucket.level(0.0) == 0 and bucket.seconds_until(1, 0.0) == 1.0
    assert bucket.level(30.0) == 30 and bucket.level(1e6) == 60


def test_a_clock_that_goes_back_gives_nothing_away():
    bucket = Bucket(60, now=100.0)
    bucket.take(60, 100.0)
    assert bucket.level(50.0) == 0 and bucket.level(101.0) == 1


def test_a_refused_request_is_taken_after_exactly_the_time_it_was_told():
    """D29: Retry-After is computed, and true."""
    one = account(requests_per_minute=2)
    one.arrive(0.0)
    one.arrive(0.0)
    with pytest.raises(RateLimitError) as refused:
        one.arrive(5.0)
    assert refused.value.code == "rate_limit_exceeded" and refused.value.retry_after == 25.0
    with pytest.raises(RateLimitError):
        one.arrive(29.9)
    one.arrive(30.0)


def test_tokens_are_reserved_at_admission_and_settled_at_the_end():
    """D11: what was reserved and not generated comes back at once."""
    one = account(tokens_per_minute=100)
    held = one.arrive(0.0)
    one.reserve(held, 20, 70, now=0.0, wall=0.0)
    assert one.limits(0.0)["tokens"].remaining == 10
    with pytest.raises(RateLimitError) as refused:
        one.reserve(one.arrive(0.0), 20, 10, now=0.0, wall=0.0)
    assert refused.value.retry_after == pytest.approx(20 * 60 / 100)
    one.settle(held, 20, 5, now=0.0, wall=0.0)
    assert one.limits(0.0)["tokens"].remaining == 75
    assert (one.prompt_tokens, one.output_tokens, one.used_today) == (20, 5, 25)


def test_an_estimate_above_the_limit_waits_for_a_full_bucket_and_leaves_a_debt():
    """An answer of unknown length is served, and in the long run the rate is kept."""
    one = account(tokens_per_minute=100)
    held = one.arrive(0.0)
    one.reserve(held, 10, 4000, now=0.0, wall=0.0)
    one.settle(held, 10, 290, now=1.0, wall=1.0)
    with pytest.raises(RateLimitError) as refused:
        one.reserve(one.arrive(1.0), 10, 10, now=1.0, wall=1.0)
    assert refused.value.retry_after > 120


def test_a_prompt_above_the_limit_is_told_that_waiting_does_not_help():
    one = account(tokens_per_minute=100)
    with pytest.raises(RateLimitError, match="101 tokens; this key allows 100") as refused:
        one.reserve(one.arrive(0.0), 101, 1, now=0.0, wall=0.0)
    assert refused.value.retry_after is None


@pytest.mark.parametrize(("prompt", "output"), [(30, 12), (30, 0), (0, 0)], ids=["success", "abort", "error"])
def test_concurrency_is_exact_however_requests_end(prompt, output):
    one = account(max_concurrent_requests=2)
    first, _ = one.arrive(0.0), one.arrive(0.0)
    with pytest.raises(RateLimitError) as refused:
        one.arrive(0.0)
    assert refused.value.code == "slow_down" and refused.value.retry_after > 0
    one.settle(first, prompt, output, now=1.0, wall=1.0)
    one.settle(first, prompt, output, now=1.0, wall=1.0)  # twice does nothing
    assert one.num_concurrent == 1
    one.arrive(1.0)


def test_a_place_is_promised_when_a_request_should_have_ended():
    one = account(max_concurrent_requests=1)
    for _ in range(60):
        one.settle(one.arrive(0.0), 0, 0, now=8.0, wall=8.0)
    one.arrive(0.0)
    with pytest.raises(RateLimitError) as refused:
        one.arrive(0.0)
    assert refused.value.retry_after == pytest.approx(8.0, rel=0.01)


def test_the_daily_budget_ends_at_midnight_and_begins_anew():
    """D11: insufficient_quota, with the seconds until the day ends."""
    one = account(daily_token_budget=100)
    noon = 20_000 * DAY + DAY / 2
    held = one.arrive(0.0)
    one.reserve(held, 50, 50, now=0.0, wall=noon)
    one.settle(held, 50, 40, now=1.0, wall=noon)
    with pytest.raises(RateLimitError, match="10 of this key's 100") as refused:
        one.reserve(one.arrive(1.0), 5, 6, now=1.0, wall=noon)
    assert refused.value.code == "insufficient_quota" and refused.value.retry_after == DAY / 2
    one.reserve(one.arrive(1.0), 5, 5, now=1.0, wall=noon)
    one.reserve(one.arrive(1.0), 50, 50, now=1.0, wall=noon + DAY / 2)


def test_a_request_over_midnight_counts_for_the_day_it_ends_on():
    one = account(daily_token_budget=100)
    held = one.arrive(0.0)
    one.reserve(held, 10, 80, now=0.0, wall=DAY - 1)
    one.settle(held, 10, 5, now=2.0, wall=DAY + 1)
    assert one.used_today == 15


def test_new_limits_keep_what_was_used_of_the_old_ones():
    """Reloading a file is no refill."""
    one = account(requests_per_minute=10)
    for _ in range(10):
        one.arrive(0.0)
    one.adopt(Tenant(name="acme", requests_per_minute=20), 0.0)
    assert one.limits(0.0)["requests"].remaining == 10
    one.adopt(Tenant(name="acme"), 0.0)
    assert one.limits(0.0) == {}
    one.arrive(0.0)


def test_a_priority_above_the_ceiling_is_clamped():
    tenant = Tenant(name="free", priority=3, priority_ceiling=1)
    assert [tenant.effective_priority(asked) for asked in (None, -5, 1, 9)] == [3, 1, 1, 9]
