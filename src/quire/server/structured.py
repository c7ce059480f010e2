"""What a request says about the shape of its output, as the engine's `StructuredOutputsParams`."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.base.errors import InvalidRequestError
from quire.base.structured import FIELD, StructuredOutputsParams
from quire.protocol.common import ResponseFormat, SamplingFields

RESPONSE_FORMATS = ("text", "json_object", "json_schema", "structural_tag")


def structured_outputs_of(request: SamplingFields) -> StructuredOutputsParams | None:
    """The constraint a request puts on its output, None for plain text.

    Raises:
        InvalidRequestError: two constraints, an unknown type, or a schema that is missing.
    """
    shaped = None if request.response_format is None else _of_format(request.response_format)
    if request.structured_outputs is None:
        return shaped
    if shaped is not None:
        raise InvalidRequestError(f"send response_format or {FIELD}, not both", param=FIELD)
    return StructuredOutputsParams(**msgspec.structs.asdict(request.structured_outputs))


def field_of(request: SamplingFields, param: str | None) -> str | None:
    """The field of the request that stands for one the engine complains about."""
    return "response_format" if is_ours(param) and request.structured_outputs is None else param


def is_ours(param: str | None) -> bool:
    """Whether a complaint is about the output's constraint."""
    return param is not None and param.partition(".")[0] == FIELD


def _of_format(wanted: ResponseFormat) -> StructuredOutputsParams | None:
    if wanted.type not in RESPONSE_FORMATS:
        raise InvalidRequestError(
            f"response_format: type {wanted.type[:64]!r} is not supported; allowed: {', '.join(RESPONSE_FORMATS)}",
            param="response_format.type",
            code="unsupported_value",
        )
    needed: dict[str, Any] = {"json_schema": wanted.json_schema, "structural_tag": wanted.structures}
    for name, value in (("json_schema", wanted.json_schema), ("structures", wanted.structures)):
        if value is not None and needed.get(wanted.type) is not value:
            param = f"response_format.{name}"
            raise InvalidRequestError(f"{param} does not belong to type {wanted.type!r}", param=param)
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if wanted.type == "structural_tag":
        tag = {"structures": wanted.structures or [], "triggers": wanted.triggers or []}
        return StructuredOutputsParams(structural_tag=tag)
    if wanted.json_schema is None:
        raise InvalidRequestError("response_format.json_schema is required", param="response_format.json_schema")
    schema = wanted.json_schema.schema
    return StructuredOutputsParams(json={"type": "object"} if schema is None else _as_object(schema))


def _as_object(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):
        param = "response_format.json_schema.schema"
        raise InvalidRequestError(f"{param} must be an object, found {type(schema).__name__}", param=param)
    return schema
