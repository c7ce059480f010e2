"""`/v1/files`: upload, list, read and delete the files of batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from quire.base.errors import InvalidRequestError
from quire.protocol.batches import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS, FileDeleted, FileList, FileObject
from quire.server.batches.access import (
    PageSize,
    batches_of,
    owner_of,
    page_query,
    refuse_foreign_origin,
    whole_number,
)
from quire.server.batches.database import storage_errors
from quire.server.errors import BodyTooLargeError, MediaTypeError
from quire.server.openapi import error_responses, json_operation

if TYPE_CHECKING:
    from pathlib import Path

PATH = "/v1/files"
ONE_PATH = "/v1/files/{file_id}"
CONTENT_PATH = "/v1/files/{file_id}/content"
PURPOSES = ("batch",)
MAX_FILE_BYTES = 200 * 2**20
PAGE = PageSize(default=10_000, most=10_000)
MAX_FIELDS = 8
EXPIRY_ANCHOR = "created_at"
_CHUNK = 2**20


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    router.add_api_route(PATH, create_file, methods=["POST"], **_upload_operation())
    listing = json_operation(None, FileList, query=PAGE.query | {"purpose": {"type": "string"}})
    router.add_api_route(PATH, list_files, methods=["GET"], **listing)
    router.add_api_route(ONE_PATH, get_file, methods=["GET"], **json_operation(None, FileObject))
    router.add_api_route(ONE_PATH, delete_file, methods=["DELETE"], **json_operation(None, FileDeleted))
    content = json_operation(None, None, media_type="application/octet-stream")
    router.add_api_route(CONTENT_PATH, get_content, methods=["GET"], **content)


async def create_file(request: Request) -> Response:
    """Keep an uploaded file."""
    files, owner = batches_of(request).files, owner_of(request)
    refuse_foreign_origin(request)
    await asyncio.to_thread(files.check_room, owner, 1)  # before the upload is read
    form = await _read_form(request)
    try:
        upload, purpose, expires_after = _fields(form)
        name = (upload.filename or "upload")[:255]

        def keep() -> FileObject:
            files.check_room(owner, upload.size or 0)
            with files.draft() as draft:
                _copy(upload, draft.path)
                return files.add_within_quota(
                    draft, owner=owner, filename=name, purpose=purpose, expires_after=expires_after
                )

        return _json(await asyncio.to_thread(keep))
    finally:
        await form.close()


async def list_files(request: Request) -> Response:
    """The caller's files."""
    runner, purpose = batches_of(request), request.query_params.get("purpose")
    query = page_query(request, PAGE)
    shown, has_more = await asyncio.to_thread(runner.files.page, owner_of(request), query, purpose)
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return _json(FileList(data=shown, first_id=first, last_id=last, has_more=has_more))


async def get_file(request: Request) -> Response:
    """What is known of a file."""
    runner, file_id = batches_of(request), request.path_params["file_id"]
    return _json(await asyncio.to_thread(runner.files.get, file_id, owner_of(request)))


async def get_content(request: Request) -> Response:
    """A file's content."""
    runner, file_id = batches_of(request), request.path_params["file_id"]
    file = await asyncio.to_thread(runner.files.get, file_id, owner_of(request))
    return FileResponse(runner.files.content(file.id), media_type="application/octet-stream")


async def delete_file(request: Request) -> Response:
    """Delete a file."""
    runner, file_id = batches_of(request), request.path_params["file_id"]
    await asyncio.to_thread(runner.files.delete, file_id, owner_of(request))
    return _json(FileDeleted(id=file_id))


async def _read_form(request: Request) -> FormData:
    """The parts of a multipart body, large ones on disk.

    Raises:
        MediaTypeError, BodyTooLargeError, InvalidRequestError: it is none, too large or malformed.
        StorageFullError: the disk is full.
    """
    media_type, _, _ = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "multipart/form-data":
        raise MediaTypeError("files are uploaded as multipart/form-data, with the parts file and purpose")
    parser = MultiPartParser(request.headers, _bounded(request.stream()), max_files=1, max_fields=MAX_FIELDS)
    try:
        with storage_errors():
            return await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:
        raise InvalidRequestError(f"the form is malformed: {error}"[:300], code="invalid_form") from None


async def _bounded(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The stream, up to the most a file may have."""
    size = 0
    async for part in stream:
        size += len(part)
        if size > MAX_FILE_BYTES:
            raise BodyTooLargeError(f"the file is larger than {MAX_FILE_BYTES} bytes, the most this server takes")
        yield part


def _fields(form: FormData) -> tuple[UploadFile, str, int | None]:
    """The file, its purpose and how long it stays; raises InvalidRequestError."""
    known = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
    for name in form:
        if name not in known:
            raise InvalidRequestError(f"unknown field: {name[:64]}", param=name[:64], code="unknown_parameter")
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise InvalidRequestError("file is required, as a part with a filename", param="file")
    if purpose not in PURPOSES:
        raise InvalidRequestError(
            f"purpose is {str(purpose)[:64]!r}; allowed: {', '.join(PURPOSES)}",
            param="purpose",
            code="unsupported_value",
        )
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return upload, purpose, None
    lifetime = whole_number(seconds) if isinstance(seconds, str) else None
    if anchor != EXPIRY_ANCHOR or lifetime is None:
        raise InvalidRequestError(
            f"expires_after has the anchor {EXPIRY_ANCHOR} and whole seconds", param="expires_after"
        )
    if not MIN_EXPIRY_SECONDS <= lifetime <= MAX_EXPIRY_SECONDS:
        raise InvalidRequestError(
            f"expires_after[seconds] must be from {MIN_EXPIRY_SECONDS} to {MAX_EXPIRY_SECONDS}", param="expires_after"
        )
    return upload, purpose, lifetime


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        while part := upload.file.read(_CHUNK):
            target.write(part)


def _upload_operation() -> dict[str, Any]:
    operation = json_operation(None, FileObject)
    responses = operation["responses"] | error_responses(has_body=True)
    schema = {
        "type": "object",
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": list(PURPOSES)},
            "expires_after[anchor]": {"enum": [EXPIRY_ANCHOR]},
            "expires_after[seconds]": {
                "type": "integer",
                "minimum": MIN_EXPIRY_SECONDS,
                "maximum": MAX_EXPIRY_SECONDS,
            },
        },
        "required": ["file", "purpose"],
    }
    body = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return operation | {"responses": responses, "openapi_extra": {"requestBody": body}}


def _json(payload: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")
