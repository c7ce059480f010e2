"""Requests as the cache sees them: tokens, counts and a salt."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from quire.base.request import Request
from quire.base.sampling import SamplingParams

_names = itertools.count()


def make_request(token_ids, *, salt: str | None = None, index: int = 0, **params) -> Request:
    return Request(
        request_id=f"r{next(_names)}",
        index=index,
        params=SamplingParams(**params),
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        max_tokens=16,
        seed=0,
        arrival_time=0.0,
        cache_salt=salt,
    )


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """Make a request over a prompt."""
    return make_request


@pytest.fixture
def compute() -> Callable:
    """Give a request room for all its tokens and publish them, as a finished step would."""

    def run(cache, request):
        allocation = cache.allocate(request, len(request.token_ids), cache.match(request))
        request.num_computed_tokens = len(request.token_ids)
        cache.commit(request, request.num_computed_tokens)
        cache.release_sources()
        cache.check()
        return allocation

    return run
