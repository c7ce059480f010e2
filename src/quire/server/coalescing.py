"""Identical requests that are in flight at the same time share one generation in the engine (N13).

Only where both are bound to get the same tokens, and only within one tenant, so that nobody learns from the time of an
answer what others ask. What sharing means for those who share is `shared_run.py`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from quire.base.pooling import PoolingParams
from quire.base.sampling import GREEDY_EPSILON, SamplingParams
from quire.server.shared_run import Outputs, SharedRun

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine


class Submitter(Protocol):
    """Whatever takes requests for an engine."""

    async def submit(
        self,
        prompt: list[int],
        sampling_params: SamplingParams | PoolingParams,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> Outputs:
        """Queue a request now; raises what `AsyncEngine.submit` raises."""


class Coalescer:
    """Takes requests for one engine, and lets those that are identical share. One event loop owns it."""

    def __init__(self, engine: AsyncEngine, on_joined: Callable[[], None]) -> None:
        """`on_joined` is called for every request that joins another."""
        self._engine = engine
        self._on_joined = on_joined
        self._runs: dict[bytes, SharedRun] = {}
        """Those that may be joined."""

    async def submit(
        self,
        prompt: list[int],
        sampling_params: SamplingParams | PoolingParams,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> Outputs:
        """Queue a request, or join one; raises what the engine does, and DeadlineExceededError."""
        submit = partial(self._engine.submit, prompt, sampling_params, request_id=request_id, delta=delta)
        if not delta or isinstance(sampling_params, PoolingParams) or not _is_deterministic(sampling_params):
            return await submit(**options)
        # Every reader keeps its own time: that of the first must not end the others.
        timeout = options.pop("timeout", None)
        key = _key(prompt, sampling_params, options)
        run = self._runs.get(key)
        if run is not None:
            self._on_joined()
        else:
            run = self._begin(key, partial(submit, timeout=None, **options), sampling_params.n)
        return await run.join(request_id, timeout).begin()

    def _begin(self, key: bytes, submit: Callable[[], Awaitable[Outputs]], num_samples: int) -> SharedRun:
        run = SharedRun(submit, lambda: self._forget(key), num_samples)
        self._runs[key] = run
        return run

    def _forget(self, key: bytes) -> None:
        self._runs.pop(key, None)


def _is_deterministic(params: SamplingParams) -> bool:
    """Whether the same request gets the same tokens; log-probabilities of prompts are too many to hold for others."""
    return (params.temperature < GREEDY_EPSILON or params.seed is not None) and params.prompt_logprobs is None


def _key(prompt: list[int], params: SamplingParams, options: dict[str, Any]) -> bytes:
    """Equal for requests that may share: prompt, sampling, tenant and salt, and the place in the queue as well, so that
    nobody waits behind somebody of lower priority."""
    return hashlib.sha256(msgspec.msgpack.encode((prompt, params, sorted(options.items())))).digest()
