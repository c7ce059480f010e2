"""Wire types of `/v1/files` and `/v1/batches`, and the lines of a batch's files; OpenAI's formats."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quire.protocol.responses import InputTokensDetails, Metadata, OutputTokensDetails, ResponsesUsage

TEXT_ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose requests `quire run-batch` answers."""
EMBEDDINGS_ENDPOINT, RESPONSES_ENDPOINT = "/v1/embeddings", "/v1/responses"
BATCH_ENDPOINTS = (*TEXT_ENDPOINTS, RESPONSES_ENDPOINT, EMBEDDINGS_ENDPOINT)
"""Endpoints whose requests a batch of the server may hold."""

MIN_EXPIRY_SECONDS, MAX_EXPIRY_SECONDS = 3600, 30 * 86400
"""How long a file may be asked to stay."""


class FileObject(msgspec.Struct, kw_only=True):
    """A file that was uploaded, or that a batch wrote."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    status: str = "processed"
    object: str = "file"


class FileList(msgspec.Struct, kw_only=True):
    """Some files, newest first unless asked otherwise."""

    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class FileDeleted(msgspec.Struct, kw_only=True):
    """A file that is no more."""

    id: str
    deleted: bool = True
    object: str = "file"


class ExpiresAfter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long files stay that a batch writes."""

    anchor: Literal["created_at"]
    """Of the file, not of the batch."""
    seconds: Annotated[int, Meta(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)]


class CreateBatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=256)]
    endpoint: str
    completion_window: str = "24h"
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(msgspec.Struct, kw_only=True):
    """What is wrong with a line of the input, or with all of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct, kw_only=True):
    """Why a batch failed before it began."""

    data: list[BatchError]
    object: str = "list"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a line's answer, or of all of them so far."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    @classmethod
    def of(cls, body: Any) -> TokenCounts:
        """What an answer says it took, in the spelling of any of the endpoints; nothing for an error."""
        usage = body.get("usage") if isinstance(body, dict) else None
        if not isinstance(usage, dict):
            return cls()

        def count(*names: str) -> int:
            return next((usage[name] for name in names if name in usage), 0)

        def detail(name: str, *parts: str) -> int:
            return next((usage[part].get(name, 0) for part in parts if usage.get(part)), 0)

        return cls(
            input=count("prompt_tokens", "input_tokens"),
            cached=detail("cached_tokens", "prompt_tokens_details", "input_tokens_details"),
            output=count("completion_tokens", "output_tokens"),
            reasoning=detail("reasoning_tokens", "completion_tokens_details", "output_tokens_details"),
        )

    @property
    def usage(self) -> ResponsesUsage:
        """The counts as a batch shows them."""
        return ResponsesUsage(
            input_tokens=self.input,
            input_tokens_details=InputTokensDetails(self.cached),
            output_tokens=self.output,
            output_tokens_details=OutputTokensDetails(self.reasoning),
            total_tokens=self.input + self.output,
        )


class RequestCounts(msgspec.Struct, kw_only=True):
    """How far a batch is; failed requests are not among the completed ones."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(msgspec.Struct, kw_only=True):
    """A batch; times are in Unix seconds, and of those behind `expires_at` at most some are set."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    usage: ResponsesUsage = msgspec.field(default_factory=lambda: TokenCounts().usage)
    model: str | None = None
    """Set where all lines name the same one."""
    metadata: Metadata | None = None
    object: str = "batch"


class BatchList(msgspec.Struct, kw_only=True):
    """Some batches, newest first."""

    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """One line of the input; `problem` says why it cannot be sent, in words for its author."""

    line: int
    custom_id: str | None
    route: str = ""
    body: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def result_id(self) -> str:
        """The id of its result: made from the line number, so that a line without a custom id resumes as well."""
        return f"batch_req_{self.line:08d}"

    @property
    def key(self) -> str:
        """What identifies its result in the output."""
        return self.custom_id if self.custom_id is not None else self.result_id


def parse_request(text: str | bytes, line: int, routes: Collection[str] = TEXT_ENDPOINTS) -> BatchRequest:
    """One line as a request; what is wrong with it goes into `problem`, nothing is raised."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BatchRequest(line=line, custom_id=None, problem=f"line {line} is not JSON: {error}")
    if not isinstance(data, dict):
        return BatchRequest(line=line, custom_id=None, problem=f"line {line} must be a JSON object")
    custom_id = data.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return BatchRequest(line=line, custom_id=None, problem=f"line {line} needs a custom_id, a non-empty string")
    problem = _problem(data, routes)
    return BatchRequest(
        line=line, custom_id=custom_id, route=str(data.get("url", "")), body=data.get("body"), problem=problem
    )


def _problem(data: dict[str, Any], routes: Collection[str]) -> str | None:
    if data.get("method", "POST") != "POST":
        return f"method is {data['method']!r}; allowed: POST"
    if data.get("url") not in routes:
        return f"url is {data.get('url')!r}; allowed: {', '.join(routes)}"
    if not isinstance(data.get("body"), dict):
        return "body must be a JSON object, the request"
    if data["body"].get("stream"):
        return "stream is true; a batch answers whole, leave it out"
    return None


def result_of(request: BatchRequest, *, status: int, body: Any, request_id: str) -> dict[str, Any]:
    """A result line for a request that was answered, be it with an error status."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": request.result_id, "custom_id": request.custom_id, "response": response, "error": None}


def failure_of(request: BatchRequest, *, code: str, message: str) -> dict[str, Any]:
    """A result line for a request that could not be sent."""
    error = {"code": code, "message": message, "line": request.line}
    return {"id": request.result_id, "custom_id": request.custom_id, "response": None, "error": error}
