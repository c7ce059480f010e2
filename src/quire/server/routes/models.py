"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.protocol.common import ModelCard, ModelList
from quire.server.openapi import json_operation
from quire.server.state import account_of, state_of

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

LIST_PATH = "/v1/models"
ONE_PATH = "/v1/models/{model_id:path}"


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    router.add_api_route(LIST_PATH, list_models, methods=["GET"], **json_operation(None, ModelList))
    router.add_api_route(ONE_PATH, get_model, methods=["GET"], **json_operation(None, ModelCard))


async def list_models(request: Request) -> Response:
    """Every served name the tenant may use."""
    state = state_of(request)
    engine = state.ready_engine()
    names = state.models_of(engine, account_of(request).tenant)
    return _json(ModelList([_card(engine, name) for name in names]))


async def get_model(request: Request) -> Response:
    """One served name; ids may contain slashes."""
    state = state_of(request)
    engine = state.ready_engine()
    name = state.find_model(engine, request.path_params["model_id"], account_of(request).tenant)
    return _json(_card(engine, name))


def _card(engine: AsyncEngine, name: str) -> ModelCard:
    return ModelCard(name, engine.info.created, engine.info.max_model_len)


def _json(payload: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
