"""The hooks of one server: finding them at start, and calling them so that a failure ends the request.

Whatever a hook raises, returns against its contract or takes too long for is logged under its name and becomes an error
that tells the client nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quire.base.errors import ConfigError
from quire.server.errors import HookFailedError, HookRejectedError, HookTimeoutError
from quire.server.hooks.contract import AnswerFilter, Hook, HookRequest, Reject, Stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NamedHook:
    """A hook, and the setting that named it."""

    name: str
    hook: Hook


@dataclass(frozen=True, slots=True)
class NamedFilter:
    """A choice's filter, and the setting that named its hook."""

    name: str
    filter: AnswerFilter


class HookSet:
    """All hooks of a server, in the order of the setting, each call of one bounded by `timeout` seconds."""

    def __init__(self, hooks: Sequence[NamedHook], timeout: float) -> None:
        self.hooks = tuple(hooks)
        self._timeout = timeout

    async def check(self, entry: NamedHook, request: HookRequest) -> None:
        """Show one hook a request.

        Raises:
            HookRejectedError: it refuses it. HookFailedError, HookTimeoutError: it did not answer.
        """
        verdict = await self._answer(entry.name, entry.hook.on_request, request)
        if verdict is not None:
            raise self._refusal(entry.name, verdict)

    def filters(self, request: HookRequest, num_choices: int) -> list[list[NamedFilter]]:
        """What each choice of the answer goes through, in that order: hooks are layers, so the first in the setting is
        the last to see an answer.

        Raises:
            HookFailedError: a hook made none.
        """
        return [
            [found for entry in reversed(self.hooks) if (found := self._filter(entry, request, choice)) is not None]
            for choice in range(num_choices)
        ]

    async def ask(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any) -> str | Stop:
        """What a filter lets through now.

        Raises:
            HookRejectedError: it ends the answer. HookFailedError, HookTimeoutError: it did not answer.
        """
        said = await self._answer(name, method, *args)
        if isinstance(said, str | Stop):
            return said
        raise self._refusal(name, said)

    async def _answer(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await method(*args)
        except Exception as error:  # noqa: BLE001 - an operator's code may raise anything; it is logged, the request ends
            if limit.expired() and isinstance(error, TimeoutError):
                logger.error("hook %s did not answer within %g s (hook_timeout)", name, self._timeout)
                raise HookTimeoutError("a filter of this server did not answer in time; try again later") from None
            raise self.failed(name, error) from None

    def failed(self, name: str, problem: Exception | str) -> HookFailedError:
        """The error for a request of which a hook made nothing; the log hears what was wrong."""
        cause = problem if isinstance(problem, Exception) else None
        what = problem if cause is None else type(cause).__name__
        logger.error("hook %s failed, and with it the request: %s", name, what, exc_info=cause)
        return HookFailedError("a filter of this server failed, so nothing was let through; the server's log says why")

    def _filter(self, entry: NamedHook, request: HookRequest, choice: int) -> NamedFilter | None:
        try:
            found = entry.hook.answer_filter(request, choice)
        except Exception as error:  # noqa: BLE001 - an operator's code may raise anything; it is logged, the request ends
            raise self.failed(entry.name, error) from None
        if found is None:
            return None
        if not isinstance(found, AnswerFilter):
            raise self.failed(entry.name, f"answer_filter made a {type(found).__name__} where an AnswerFilter belongs")
        return NamedFilter(entry.name, found)

    def _refusal(self, name: str, verdict: Any) -> HookRejectedError:
        if not isinstance(verdict, Reject):
            raise self.failed(name, f"it returned {type(verdict).__name__}, which its contract does not have")
        logger.info("hook %s rejected a request with %d %s", name, verdict.status, verdict.code)
        return HookRejectedError(verdict.message, status=verdict.status, code=verdict.code, param=verdict.param)


def load_hooks(settings: Sequence[str], *, timeout: float) -> HookSet | None:
    """The hooks that `package.module:name` settings name, in order; None without any.

    Raises:
        ConfigError: a setting that does not lead to a hook; it names the setting and the reason.
    """
    return HookSet([NamedHook(setting, _load(setting)) for setting in settings], timeout) if settings else None


def _load(setting: str) -> Hook:
    module_name, separator, name = setting.partition(":")
    if not (separator and module_name and name.isidentifier()):
        raise ConfigError(f"hooks: {setting!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"hooks: the module of {setting!r} cannot be imported: {type(error).__name__}: {error}. Install it, or put "
            f"its folder on PYTHONPATH"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        found = "nothing" if factory is None else f"a {type(factory).__name__}"
        raise ConfigError(f"hooks: {setting!r} names {found}; a class, or a function that makes the hook, is needed")
    try:
        hook = factory()
    except Exception as error:
        raise ConfigError(f"hooks: {setting!r}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(hook, Hook):
        raise ConfigError(f"hooks: {setting!r}() made a {type(hook).__name__}; a quire.server.hooks.Hook is needed")
    if not inspect.iscoroutinefunction(hook.on_request):
        raise ConfigError(f"hooks: on_request of {setting!r} must be an async def")
    return hook
