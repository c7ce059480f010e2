"""The OpenAPI description: FastAPI knows the routes, msgspec the bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from quire.protocol.anthropic import CountTokensRequest, Message, MessagesRequest, TokenCountResponse
from quire.protocol.anthropic_events import MESSAGE_EVENTS, MessageEvent
from quire.protocol.batches import BatchList, BatchObject, CreateBatch, FileDeleted, FileList, FileObject
from quire.protocol.chat import ChatChunk, ChatRequest, ChatResponse
from quire.protocol.common import ModelCard, ModelList
from quire.protocol.completions import CompletionRequest, CompletionResponse
from quire.protocol.errors import AnthropicErrorBody, ErrorBody
from quire.protocol.response_events import RESPONSE_EVENTS, ResponseEvent
from quire.protocol.responses import InputItemList, ResponseDeleted, ResponseObject, ResponsesRequest
from quire.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    RenderedRequest,
    TokenizeRequest,
    TokenizeResponse,
)
from quire.protocol.vectors import (
    ClassifyRequest,
    ClassifyResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    PoolingResponse,
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
)

_ERRORS = (400, 401, 403, 404, 431, 500, 503)
_BODY_ERRORS = (408, 413, 415, 429)
_UNTYPED: dict[str, dict[str, Any]] = {"application/json": {"type": "object"}, "text/plain": {"type": "string"}}
REFUSED_KEY = "x-refused-fields"
_PATH_NAME = re.compile(r"{(\w+)}")
_REF = "#/components/schemas/{name}"
_WIRE_TYPES = (
    ChatRequest,
    ChatResponse,
    ChatChunk,
    CompletionRequest,
    CompletionResponse,
    ModelList,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    RenderedRequest,
    FileObject,
    FileList,
    FileDeleted,
    CreateBatch,
    BatchObject,
    BatchList,
    EmbeddingRequest,
    EmbeddingResponse,
    PoolingResponse,
    ClassifyRequest,
    ClassifyResponse,
    ScoreRequest,
    ScoreResponse,
    RerankRequest,
    RerankResponse,
    ResponsesRequest,
    ResponseObject,
    ResponseDeleted,
    InputItemList,
    *RESPONSE_EVENTS,
    MessagesRequest,
    Message,
    *MESSAGE_EVENTS,
    CountTokensRequest,
    TokenCountResponse,
    ErrorBody,
    AnthropicErrorBody,
)


def json_operation(
    request: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
    *,
    media_type: str = "application/json",
    streams: bool = False,
    query: Mapping[str, dict[str, Any]] | None = None,
    error: type[msgspec.Struct] = ErrorBody,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Arguments of `add_api_route` that describe a route with these bodies; parsing them is the route's own work.

    An answer of no wire type is an object, or what `media_type` says. A route that `streams` answers with server-sent
    events instead where the body asks for them. `query` has the schemas of its query parameters by name, `error` the
    shape of its errors, `refused` the fields that other servers know and this one refuses, each with its remedy.
    """
    extra: dict[str, Any] = {}
    if request is not None:
        extra["requestBody"] = {"required": True, "content": _content(request)}
        own = {spec.encode_name for spec in msgspec.structs.fields(request)}
        extra[REFUSED_KEY] = {name: hint for name, hint in (refused or {}).items() if name not in own}
    if query:
        extra["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    content = _content(answer) if answer is not None else {media_type: {"schema": _UNTYPED.get(media_type, {})}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "Success", "content": content}}
    return {
        "response_class": Response,
        "response_model": None,
        "responses": responses | error_responses(has_body=request is not None, error=error),
        "openapi_extra": extra,
    }


def error_responses(*, has_body: bool, error: type[msgspec.Struct] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The errors a route may answer with, all in the one shape; some come only where a body is read."""
    statuses = sorted(_ERRORS + _BODY_ERRORS * has_body)
    return {status: {"description": HTTPStatus(status).phrase, "content": _content(error)} for status in statuses}


def array_of_answers(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation whose successful answer is an array of what it was said to be; returns it, changed."""
    content = operation["responses"][200]["content"]["application/json"]
    content["schema"] = {"type": "array", "items": content["schema"]}
    return operation


def event_stream(operation: dict[str, Any], events: Sequence[type[ResponseEvent | MessageEvent]]) -> None:
    """Add to an operation's successful answer that it may be a stream of these events."""
    schema = {"oneOf": [{"$ref": _REF.format(name=event.__name__)} for event in events]}
    operation["responses"][200]["content"]["text/event-stream"] = {"schema": schema}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once and kept on the app."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation.setdefault("parameters", []).extend(map(_path_parameter, _PATH_NAME.findall(path)))
        _, components = msgspec.json.schema_components(_WIRE_TYPES, ref_template=_REF)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
        app.openapi_schema = schema
    return app.openapi_schema


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
