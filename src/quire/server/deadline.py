"""How long a request may take: the tightest of what the server, its tenant, its header and its body say."""

from __future__ import annotations

import math

from quire.base.errors import DeadlineExceededError, InvalidRequestError

TIMEOUT_HEADER = "x-request-timeout"


def timeout_from_header(value: str | None) -> float | None:
    """Seconds from the header's text; raises InvalidRequestError for anything but a number above 0."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(f"{TIMEOUT_HEADER} takes a number of seconds above 0", param=TIMEOUT_HEADER)
    return seconds


def tightest(*timeouts: float | None) -> float | None:
    """The smallest of those that are set."""
    return min((timeout for timeout in timeouts if timeout is not None), default=None)


def remaining(timeout: float | None, elapsed: float) -> float | None:
    """What is left of a timeout after `elapsed` seconds; raises DeadlineExceededError when nothing is."""
    if timeout is None:
        return None
    if elapsed >= timeout:
        raise DeadlineExceededError("the request's deadline passed before it was queued")
    return timeout - elapsed
