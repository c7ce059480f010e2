"""`/v1/batches`: start, list, look at and cancel batches."""

from __future__ import annotations

import asyncio
import re

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError, OverloadedError
from quire.protocol.batches import BATCH_ENDPOINTS, BatchList, BatchObject, CreateBatch
from quire.protocol.decode import RequestDecoder
from quire.server.batches.access import PageSize, batches_of, owner_of, page_query
from quire.server.batches.store import new_batch_id
from quire.server.limits import read_json_body
from quire.server.openapi import json_operation

PATH = "/v1/batches"
ONE_PATH = "/v1/batches/{batch_id}"
CANCEL_PATH = "/v1/batches/{batch_id}/cancel"
PAGE = PageSize(default=20, most=100)
MAX_OPEN_BATCHES = 1000
"""Of one tenant."""
MAX_WINDOW_HOURS = 168
_WINDOW = re.compile(r"([1-9][0-9]{0,2})h")
_decoder = RequestDecoder(CreateBatch)


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    router.add_api_route(PATH, create_batch, methods=["POST"], **json_operation(CreateBatch, BatchObject))
    router.add_api_route(PATH, list_batches, methods=["GET"], **json_operation(None, BatchList, query=PAGE.query))
    router.add_api_route(ONE_PATH, get_batch, methods=["GET"], **json_operation(None, BatchObject))
    router.add_api_route(CANCEL_PATH, cancel_batch, methods=["POST"], **json_operation(None, BatchObject))


async def create_batch(request: Request) -> Response:
    """Start a batch over the lines of an uploaded file."""
    runner, owner = batches_of(request), owner_of(request)
    body = _decoder.decode(await read_json_body(request))
    if body.endpoint not in BATCH_ENDPOINTS:
        raise InvalidRequestError(
            f"endpoint is {body.endpoint[:64]!r}; allowed: {', '.join(BATCH_ENDPOINTS)}",
            param="endpoint",
            code="unsupported_value",
        )
    seconds = _window_seconds(body.completion_window)
    file = await asyncio.to_thread(runner.files.get, body.input_file_id, owner)
    if file.purpose != "batch":
        raise InvalidRequestError(f"the file's purpose is {file.purpose!r}; it must be batch", param="input_file_id")
    await asyncio.to_thread(runner.files.check_room, owner, 0)
    if await asyncio.to_thread(runner.batches.num_open, owner) >= MAX_OPEN_BATCHES:
        raise OverloadedError(f"{MAX_OPEN_BATCHES} batches are open, the most allowed", retry_after=60.0)
    now = runner.database.now()
    batch = BatchObject(
        id=new_batch_id(),
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        status="validating",
        created_at=now,
        expires_at=now + seconds,
        metadata=body.metadata,
    )
    lifetime = None if body.output_expires_after is None else body.output_expires_after.seconds
    await asyncio.to_thread(lambda: runner.batches.add(batch, owner, output_lifetime=lifetime))
    runner.wake()
    return _json(batch)


async def list_batches(request: Request) -> Response:
    """The caller's batches."""
    runner = batches_of(request)
    query = page_query(request, PAGE)
    shown, has_more = await asyncio.to_thread(runner.batches.page, owner_of(request), query)
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return _json(BatchList(data=shown, first_id=first, last_id=last, has_more=has_more))


async def get_batch(request: Request) -> Response:
    """How far a batch is."""
    runner, batch_id = batches_of(request), request.path_params["batch_id"]
    return _json(await asyncio.to_thread(runner.batches.get, batch_id, owner_of(request)))


async def cancel_batch(request: Request) -> Response:
    """Cancel a batch; lines that have a result keep it. One that is over is refused."""
    runner, batch_id = batches_of(request), request.path_params["batch_id"]
    await asyncio.to_thread(runner.batches.get, batch_id, owner_of(request))
    now, states = runner.database.now(), ("validating", "in_progress", "cancelling")
    batch = await asyncio.to_thread(
        lambda: runner.batches.change(batch_id, only_from=states, status="cancelling", cancelling_at=now)
    )
    if batch.status != "cancelling":
        raise InvalidRequestError(
            f"the batch is {batch.status} and cannot be cancelled", param="batch_id", code="conflict"
        )
    runner.note_cancelled(batch_id)
    return _json(batch)


def _window_seconds(window: str) -> int:
    match = _WINDOW.fullmatch(window)
    if match is None or int(match[1]) > MAX_WINDOW_HOURS:
        raise InvalidRequestError(
            f"completion_window is {window[:32]!r}; give hours from 1h to {MAX_WINDOW_HOURS}h, such as 24h",
            param="completion_window",
        )
    return int(match[1]) * 3600


def _json(payload: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
