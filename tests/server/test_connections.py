"""Who gets a connection, and for how long one may keep the server waiting: the policy, with a clock of its own."""

from __future__ import annotations

import pytest

from quire.server import connections
from quire.server.connections import RESERVED, Connections, Pace, Phase, Place


class Guest:
    """A connection that only notes what is done with it."""

    def __init__(self) -> None:
        self.gave_way = False
        self.checked: list[float] = []

    def check(self, now: float) -> None:
        self.checked.append(now)

    def give_way(self) -> None:
        self.gave_way = True


def pace_of() -> Pace:
    return Pace(0.0, head_seconds=30.0, body_seconds=connections.BODY_SECONDS)


def enter(room: Connections, count: int, address: str = "a", now: float = 0.0) -> list[tuple[Guest, Place]]:
    guests = [Guest() for _ in range(count)]
    return [(guest, room.enter(guest, address, now)) for guest in guests]


def test_beyond_the_bound_places_are_reserved_and_the_oldest_of_them_gives_way() -> None:
    """SEC-23: never more than the bound and the reserve, and a newcomer is always heard."""
    refusals: list[Place] = []
    room = Connections(3, on_refusal=refusals.append)
    assert [place for _, place in enter(room, 3)] == [Place.ORDINARY] * 3
    beyond = enter(room, 1000)
    assert {place for _, place in beyond} == {Place.FULL} and len(room) == 3 + RESERVED
    assert [guest.gave_way for guest, _ in beyond] == [True] * (1000 - RESERVED) + [False] * RESERVED
    assert refusals == [Place.FULL] * 1000


def test_a_place_that_is_left_is_free_again() -> None:
    room = Connections(1)
    ((first, _),) = enter(room, 1)
    room.leave(first)
    room.leave(first)
    assert len(room) == 0 and enter(room, 1)[0][1] is Place.ORDINARY


def test_one_address_cannot_take_every_place() -> None:
    """SEC-23: its own bound holds while others are served."""
    room = Connections(10, 2)
    assert [place for _, place in enter(room, 3)] == [Place.ORDINARY, Place.ORDINARY, Place.ADDRESS_FULL]
    ((guest, place),) = enter(room, 1, "b")
    assert place is Place.ORDINARY
    room.leave(guest)
    assert [place for _, place in enter(room, 3, "b")] == [Place.ORDINARY, Place.ORDINARY, Place.ADDRESS_FULL]


def test_who_has_waited_longest_for_a_next_request_gives_way_when_all_places_are_taken() -> None:
    """SEC-23: idle connections cost an attacker nothing, so they must cost nobody else a place."""
    room = Connections(3)
    (busy, _), (older, _), (newer, _) = enter(room, 3)
    room.rest(older, 1.0)
    room.rest(newer, 2.0)
    assert enter(room, 1, now=3.0)[0][1] is Place.FULL, "a pooled connection is not cut off at once"
    assert enter(room, 1, now=1.0 + connections.MIN_IDLE_SECONDS)[0][1] is Place.ORDINARY
    assert (busy.gave_way, older.gave_way, newer.gave_way) == (False, True, False)
    room.wake(newer)
    assert enter(room, 1, now=1e6)[0][1] is Place.FULL, "nobody idle is left"


def test_a_sweep_reaches_every_connection() -> None:
    room = Connections(1)
    guests = enter(room, 2)
    room.sweep(7.0)
    assert all(guest.checked == [7.0] for guest, _ in guests)


def test_a_head_has_a_fixed_time_however_its_bytes_trickle() -> None:
    """SEC-23: a byte now and then buys nothing."""
    pace = pace_of()
    for now in range(1, 30):
        pace.received(1)
        pace.enter(Phase.HEAD, float(now))
        assert not pace.is_late(float(now))
    assert pace.is_late(30.0)


def test_a_body_has_time_in_proportion_to_what_came() -> None:
    """SEC-23: a slow line is served, a drip is not."""
    pace = pace_of()
    pace.enter(Phase.BODY, 10.0)
    assert not pace.is_late(10.0 + connections.BODY_SECONDS - 1)
    assert pace.is_late(10.0 + connections.BODY_SECONDS)
    pace.received(100 * connections.BODY_BYTES_PER_SECOND)
    assert not pace.is_late(100.0 + connections.BODY_SECONDS)
    assert pace.is_late(110.0 + connections.BODY_SECONDS)


@pytest.mark.parametrize("phase", [Phase.REST, Phase.ANSWER])
def test_nobody_is_late_with_what_he_does_not_owe(phase: Phase) -> None:
    """REL-18: between requests only the keep-alive time counts, and an answer may take as long as it takes."""
    pace = pace_of()
    pace.enter(phase, 0.0)
    assert not pace.is_late(1e9)


def test_a_reader_is_stalled_once_it_takes_nothing_for_long() -> None:
    """REL-9: bytes that wait and do not become fewer, with none being added."""
    pace = pace_of()
    assert not pace.is_stalled(1.0, 0, may_grow=False)
    assert not pace.is_stalled(2.0, 1000, may_grow=True)
    assert not pace.is_stalled(2.0 + connections.STALL_SECONDS - 1, 1000, may_grow=False)
    assert not pace.is_stalled(200.0, 999, may_grow=False), "it took a byte"
    assert not pace.is_stalled(199.0 + connections.STALL_SECONDS, 999, may_grow=False)
    assert pace.is_stalled(200.0 + connections.STALL_SECONDS, 999, may_grow=False)
