"""Keys and what they find."""

from __future__ import annotations

import gc

import pytest

from quire.base.errors import InvalidRequestError
from quire.cache.prefix import MAX_PARTIAL_CANDIDATES, PrefixCache


def publish(prefix, page_of, tokens, *, salt=None):
    """Publish every full page of the tokens on pages numbered by `page_of`."""
    keys = [prefix.root_key(salt)]
    size = prefix.page_size
    prefix.extend_keys(keys, tokens, len(tokens) // size)
    for index in range(len(tokens) // size):
        chunk = tokens[index * size : (index + 1) * size]
        prefix.publish(page_of + index, parent_key=keys[index], key=keys[index + 1], token_ids=chunk)
    if len(prefix) < 20:
        prefix.check()
    return keys


def find(prefix, tokens, *, salt=None, max_tokens=None):
    return prefix.find([prefix.root_key(salt)], tokens, len(tokens) if max_tokens is None else max_tokens)


def test_the_longest_published_prefix_is_found():
    """S17 S19: full pages are shared, the page that diverges is a source of its first tokens."""
    prefix = PrefixCache(4)
    publish(prefix, 10, list(range(1, 13)))
    hit = find(prefix, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99, 98])
    assert (hit.page_ids, hit.num_tokens, hit.source, hit.num_partial) == ((10, 11), 10, 12, 2)
    assert hit.without_source().num_tokens == 8 and hit.without_source().source is None
    assert find(prefix, [2, 3, 4, 5]).num_tokens == 0


def test_a_page_is_found_only_behind_its_own_prefix():
    """S17: equal tokens after a different beginning are a different page."""
    prefix = PrefixCache(2)
    publish(prefix, 0, [1, 2, 3, 4])
    assert find(prefix, [9, 9, 3, 4]).num_tokens == 0
    assert find(prefix, [3, 4]).num_tokens == 0


def test_the_cap_turns_a_full_page_into_a_partial_one():
    """S36: at least one token stays to be computed."""
    prefix = PrefixCache(4)
    publish(prefix, 0, list(range(8)))
    hit = find(prefix, list(range(8)), max_tokens=7)
    assert (hit.page_ids, hit.num_tokens, hit.source) == ((0,), 7, 1)


def test_keys_depend_on_parent_tokens_salt_and_fingerprint():
    """SEC-33: and on nothing else; two processes agree."""
    prefix = PrefixCache(2, fingerprint=b"model")
    roots = [prefix.root_key(None), prefix.root_key("a"), prefix.root_key("b"), PrefixCache(2).root_key(None)]
    keys = {prefix.child_key(root, tokens) for root in roots for tokens in ([1, 2], [2, 1], [258, 0])}
    assert len(keys) == 12 and all(len(key) == 32 for key in keys)
    again = PrefixCache(2, fingerprint=b"model")
    assert again.child_key(again.root_key("a"), [1, 2]) == prefix.child_key(prefix.root_key("a"), [1, 2])
    # Neither can a salt imitate a fingerprint.
    assert PrefixCache(2, fingerprint=b"x").root_key("y") != PrefixCache(2, fingerprint=b"xy").root_key(None)


def test_an_empty_salt_is_refused():
    """SEC-33: it would look like isolation and give none."""
    with pytest.raises(InvalidRequestError, match="cache_salt is empty"):
        PrefixCache(2).root_key("")


def test_salts_share_nothing_not_even_part_of_a_page():
    """SEC-33: the partial index is under the salted parent too."""
    prefix = PrefixCache(4)
    publish(prefix, 0, list(range(8)), salt="a")
    for salt in ("b", None):
        assert find(prefix, list(range(8)), salt=salt).num_tokens == 0
    assert find(prefix, list(range(8)), salt="a").num_tokens == 8


def test_colliding_keys_do_not_leak(monkeypatch):
    """SEC-33: with a hash that always collides, the tokens themselves still tell pages apart."""
    prefix = PrefixCache(2)
    monkeypatch.setattr(prefix, "child_key", lambda parent, tokens: b"same")
    publish(prefix, 0, [1, 2])
    assert find(prefix, [3, 4]).num_tokens == 0
    assert find(prefix, [1, 2]).page_ids == (0,)


def test_an_equal_page_is_published_once():
    """S17: the second of two requests that computed the same prompt keeps its page to itself."""
    prefix = PrefixCache(2)
    publish(prefix, 0, [1, 2])
    publish(prefix, 7, [1, 2])
    assert prefix.has(0) and not prefix.has(7) and len(prefix) == 1


def test_withdrawn_pages_are_forgotten_everywhere():
    """S20: by key, by page and as a source of partial hits."""
    prefix = PrefixCache(2)
    publish(prefix, 0, [1, 2, 3, 4])
    prefix.withdraw(1)
    prefix.check()
    assert find(prefix, [1, 2, 3, 4]).num_tokens == 2
    prefix.withdraw(0)
    assert len(prefix) == 0 and not prefix._children and find(prefix, [1, 2]).num_tokens == 0


def test_the_search_for_a_partial_page_is_bounded():
    """S23: a thousand continuations of one system prompt cost no more than a few."""
    prefix = PrefixCache(4)
    for i in range(1000):
        publish(prefix, i, [1, 2, 3, 100 + i])
    assert find(prefix, [1, 2, 3, 7]).num_tokens == 3
    family = prefix._children[prefix.root_key(None), 1]
    assert len(family) == 1000 > MAX_PARTIAL_CANDIDATES


def test_check_finds_a_page_whose_key_is_not_its_tokens():
    """REL-17 SEC-33: a wrong index entry is a wrong answer to someone."""
    prefix = PrefixCache(2)
    keys = publish(prefix, 0, [1, 2])
    prefix.publish(1, parent_key=keys[1], key=b"x" * 32, token_ids=[3, 4])
    with pytest.raises(AssertionError, match="wrong key"):
        prefix.check()


def test_published_pages_are_no_work_for_the_garbage_collector():
    """A large cache would otherwise make full collections pauses of many milliseconds."""
    prefix = PrefixCache(2)
    publish(prefix, 0, list(range(4000)))
    gc.collect()  # looks at what is new once and lets go of it
    page, family = prefix._by_page[7], prefix._children[prefix._by_page[7].parent_key, 14]
    assert not any(map(gc.is_tracked, (page, page.token_ids, family)))
