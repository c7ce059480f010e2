"""The OpenAPI description: FastAPI knows the routes, msgspec the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from quire.protocol.batches import BatchList, BatchObject, CreateBatch, FileDeleted, FileList, FileObject
from quire.protocol.chat import ChatChunk, ChatRequest, ChatResponse
from quire.protocol.common import ModelCard, ModelList
from quire.protocol.completions import CompletionRequest, CompletionResponse
from quire.protocol.errors import ErrorBody
from quire.protocol.response_events import RESPONSE_EVENTS, ResponseEvent
from quire.protocol.responses import ResponseDeleted, ResponseObject, ResponsesRequest
from quire.protocol.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
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
    *RESPONSE_EVENTS,
    ErrorBody,
)


def json_operation(request: type[msgspec.Struct] | None, answer: type[msgspec.Struct] | None) -> dict[str, Any]:
    """Arguments of `add_api_route` that describe a route with these bodies; parsing them is the route's own work."""
    extra: dict[str, Any] = {}
    if request is not None:
        extra["requestBody"] = {"required": True, "content": _content(request)}
    responses: dict[int | str, dict[str, Any]] = {"default": {"description": "Error", "content": _content(ErrorBody)}}
    if answer is not None:
        responses[200] = {"description": "Success", "content": _content(answer)}
    return {"response_class": Response, "response_model": None, "responses": responses, "openapi_extra": extra}


def event_stream(operation: dict[str, Any], events: Sequence[type[ResponseEvent]]) -> None:
    """Add to an operation's successful answer that it may be a stream of these events."""
    schema = {"oneOf": [{"$ref": _REF.format(name=event.__name__)} for event in events]}
    operation["responses"][200]["content"]["text/event-stream"] = {"schema": schema}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once and kept on the app."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, components = msgspec.json.schema_components(_WIRE_TYPES, ref_template=_REF)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
        app.openapi_schema = schema
    return app.openapi_schema


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}
