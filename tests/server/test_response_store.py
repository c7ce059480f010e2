"""The store of responses: whose they are, and which go when room is needed."""

import pytest

from quire.server.errors import StoredObjectNotFoundError
from quire.server.response_store import ResponseStore, StoredResponse


def response(size: int) -> StoredResponse:
    """A response that takes `size` bytes in all."""
    overhead = StoredResponse(b"", b"").size
    return StoredResponse(b"x" * (size - overhead), b"")


def held(store: ResponseStore, owner: str, ids: str) -> str:
    """Those of the ids that are still there."""
    found = ""
    for name in ids:
        try:
            store.get(owner, name)
        except StoredObjectNotFoundError:
            continue
        found += name
    return found


def test_the_least_recently_used_goes_when_an_owner_holds_too_much():
    store = ResponseStore(max_bytes=100_000, max_owner_bytes=6_000)
    for name in "abc":
        store.put("me", name, response(2_000))
    store.get("me", "a")
    store.put("me", "d", response(2_000))
    assert held(store, "me", "abcd") == "acd" and store.num_bytes == 6_000


def test_one_owner_does_not_push_out_anothers_before_the_whole_is_full():
    store = ResponseStore(max_bytes=10_000, max_owner_bytes=6_000)
    store.put("you", "y", response(2_000))
    for name in "abcdef":
        store.put("me", name, response(2_000))
    assert held(store, "you", "y") == "y" and held(store, "me", "abcdef") == "def"


def test_the_whole_is_bounded_too():
    store = ResponseStore(max_bytes=5_000, max_owner_bytes=4_000)
    for owner in ("a", "b", "c"):
        store.put(owner, "x", response(2_000))
    assert [held(store, owner, "x") for owner in ("a", "b", "c")] == ["", "x", "x"] and store.num_bytes == 4_000


def test_nobody_sees_or_deletes_what_is_another_ones():
    store = ResponseStore()
    store.put("me", "a", response(2_000))
    with pytest.raises(StoredObjectNotFoundError):
        store.get("you", "a")
    with pytest.raises(StoredObjectNotFoundError):
        store.delete("you", "a")
    store.delete("me", "a")
    assert len(store) == 0 and store.num_bytes == 0


def test_a_response_larger_than_the_bound_is_not_kept_and_pushes_nothing_out():
    store = ResponseStore(max_bytes=10_000, max_owner_bytes=4_000)
    store.put("me", "a", response(2_000))
    store.put("me", "b", response(4_001))
    assert held(store, "me", "ab") == "a"
