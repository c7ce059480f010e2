"""Turns between tenants, and the slots that lines wait for."""

import asyncio
from collections import Counter

import pytest

from quire.server.batches.turns import LineSlots, WeightedTurns


def test_turns_are_taken_by_weight_evenly_mixed():
    turns = WeightedTurns()
    turns.join("gold", 3.0)
    turns.join("free", 1.0)
    taken = [turns.take(["gold", "free"]) for _ in range(40)]
    assert Counter(taken) == {"gold": 30, "free": 10}
    assert all(taken[i : i + 4].count("free") == 1 for i in range(0, 40, 4))


def test_who_comes_later_begins_where_the_others_are():
    turns = WeightedTurns()
    turns.join("early", 1.0)
    for _ in range(100):
        turns.take(["early"])
    turns.join("late", 1.0)
    assert Counter(turns.take(["early", "late"]) for _ in range(20)) == {"early": 10, "late": 10}


def test_leaving_and_coming_back_wins_nothing():
    """A tenant that sends many small batches has no more turns than with one large one."""
    turns, taken = WeightedTurns(), Counter()
    turns.join("steady", 1.0)
    for _ in range(50):
        turns.join("hasty", 1.0)
        for _ in range(3):
            taken[turns.take(["steady", "hasty"])] += 1
        turns.leave("hasty")
    assert taken["hasty"] <= taken["steady"] + 1


def test_those_who_left_are_forgotten():
    turns = WeightedTurns()
    turns.join("steady", 1.0)
    for index in range(100):
        turns.join(str(index), 1.0)
        turns.take([str(index)])
        turns.leave(str(index))
        turns.take(["steady"])
        turns.take(["steady"])
    assert len(turns._times) < 5
    turns.leave("steady")
    assert turns._times == {}


@pytest.fixture
def slots():
    slots = LineSlots(lambda _: slots.allowed)
    slots.allowed = 2
    for name in ("a", "b"):
        slots.turns.join(name, 1.0)
    return slots


async def test_a_slot_is_waited_for_until_one_is_free_or_the_time_is_over(slots):
    assert await slots.acquire("a", 0.01) and await slots.acquire("a", 0.01)
    assert not await slots.acquire("a", 0.01)
    waiting = asyncio.create_task(slots.acquire("b", 5))
    await asyncio.sleep(0)
    slots.release()
    assert await waiting and slots.num_open == 2


async def test_more_slots_are_found_by_whoever_asks_again(slots):
    slots.allowed = 0
    assert not await slots.acquire("a", 0.001)
    slots.allowed = 1
    assert await slots.acquire("a", 0.001)


async def test_a_waiter_that_is_cancelled_takes_no_slot_along(slots):
    slots.allowed = 1
    assert await slots.acquire("a", 0.01)
    waiting = asyncio.create_task(slots.acquire("b", 5))
    await asyncio.sleep(0)
    slots.release()  # the slot is the waiter's, which does not know yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.num_open == 0 and await slots.acquire("a", 0.01)
    gone = asyncio.create_task(slots.acquire("b", 5))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slots.release()
    assert slots.num_open == 0
