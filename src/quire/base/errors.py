"""Every error quire raises on purpose, and nothing about how a host reports it (`server/errors.py` maps them to HTTP).

    QuireError
    ├── ConfigError                what the operator asked for cannot be done
    ├── UnsupportedModelError      the checkpoint is of a kind quire does not run
    ├── WeightError                the checkpoint's files are damaged, incomplete or of a refused format
    ├── InvalidRequestError        what one request asks for cannot be done
    │   ├── ContextLengthError     the prompt (and the output asked for) exceed the model's length
    │   ├── ModelNotFoundError     the request names a model that is not served here
    │   ├── NoTokenLeftError       what the request allows and forbids leaves no token to go on with
    │   └── TemplateError          the chat template is missing or refuses the conversation
    ├── OverloadedError            try again later (queue full, draining)
    ├── RateLimitError             the tenant used up what its key allows for now
    ├── DeadlineExceededError      the request's time ran out, in the queue or while decoding
    ├── StepError                  the engine step that held this request failed; the engine lives
    └── EngineDeadError            the engine is gone; nothing more will come

A message says what was found, what is allowed, and the setting that changes it.
"""

from __future__ import annotations


class QuireError(Exception):
    """The root of the tree: catching it catches what quire raises on purpose, and no bug."""


class ConfigError(QuireError):
    """A setting, or a combination of settings, cannot be honoured."""


class UnsupportedModelError(QuireError):
    """The checkpoint's architecture, position scheme, activation or format is not supported."""


class WeightError(QuireError):
    """A weight file is missing, damaged or refused, or does not fit the configuration."""


class InvalidRequestError(QuireError):
    """One request cannot be honoured; `param` names the offending field and `code` is machine-readable."""

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt and the requested output, are longer than the model allows."""

    code = "context_length_exceeded"


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"


class NoTokenLeftError(InvalidRequestError):
    """What a request allows and forbids leaves no token to go on with, which only shows while it is answered."""

    code = "no_token_left"


class TemplateError(InvalidRequestError):
    """The conversation cannot be rendered: no chat template, or the template refused it."""

    code = "chat_template_error"


class OverloadedError(QuireError):
    """The engine does not take requests now; `retry_after` is the number of seconds to wait."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitError(QuireError):
    """A tenant's quota does not hold this request now.

    `code` is `rate_limit_exceeded`, `slow_down` or `insufficient_quota`; `retry_after` is the number of seconds after
    which the quota will hold it, None when it never will.
    """

    def __init__(self, message: str, *, code: str = "rate_limit_exceeded", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class DeadlineExceededError(QuireError):
    """The request's own time limit passed before it finished."""


class StepError(QuireError):
    """The step that computed this request failed (out of memory, say); other requests go on."""


class EngineDeadError(QuireError):
    """The engine process or thread ended; every open request ends with this error."""


def error_class(name: str | None, *, otherwise: type[QuireError]) -> type[QuireError]:
    """The class a message from another process names; `otherwise` where the tree has none of that name."""
    cls = globals().get(name or "")
    return cls if isinstance(cls, type) and issubclass(cls, QuireError) else otherwise
