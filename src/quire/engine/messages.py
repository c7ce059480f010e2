"""What front end and engine process say to each other, and the frames it travels in.

Frames are a 4-byte little-endian length and a msgpack body of a fixed schema; pickle is never used and a frame that is
too long or does not fit the schema ends the connection. The engine sends one `StepMessage` per step, however many
requests the step advanced.
"""

from __future__ import annotations

import struct

import msgspec

from quire.base.errors import InvalidRequestError
from quire.base.metrics import EngineStats
from quire.base.outputs import TokenOutput
from quire.base.request import EngineRequest
from quire.engine.info import EngineInfo

MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct("<I")


class AddMessage(msgspec.Struct, tag="add", frozen=True):
    """Front end to engine: new requests."""

    requests: list[EngineRequest]


class AbortMessage(msgspec.Struct, tag="abort", frozen=True):
    """Front end to engine: these requests, and these single samples of others, are no longer wanted."""

    request_ids: list[str] = []
    samples: list[tuple[str, int]] = []
    """(request id, index): a stop string ended that sample, and the request's other samples go on."""


class StopMessage(msgspec.Struct, tag="stop", frozen=True):
    """Front end to engine: end now."""


class ReadyMessage(msgspec.Struct, tag="ready", frozen=True):
    """Engine to front end: loaded, warmed up, waiting for requests."""

    info: EngineInfo


class StartFailedMessage(msgspec.Struct, tag="start_failed", frozen=True):
    """Engine to front end: it cannot start; `kind` names the class in `base/errors.py`."""

    kind: str
    message: str


class PhaseMessage(msgspec.Struct, tag="phase", frozen=True):
    """Engine to front end while starting: what it is doing now."""

    name: str


class StepMessage(msgspec.Struct, tag="step", frozen=True):
    """Engine to front end: what one step (or an abort between steps) brought."""

    outputs: list[TokenOutput]
    stats: EngineStats


ToEngine = AddMessage | AbortMessage | StopMessage
FromEngine = ReadyMessage | StartFailedMessage | PhaseMessage | StepMessage

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)
_MISFITS = (msgspec.DecodeError, msgspec.ValidationError, InvalidRequestError, RecursionError)


class FrameError(Exception):
    """A peer sent bytes that are no frame of this protocol."""


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message as a frame, length first."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Length of the body behind a 4-byte header; raises FrameError beyond the cap."""
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return int(length)


def decode_to_engine(body: bytes) -> ToEngine:
    """A message for the engine; raises FrameError when the body does not fit the schema."""
    try:
        message: ToEngine = _to_engine.decode(body)
    except _MISFITS as error:
        raise FrameError(f"malformed message for the engine: {error}") from error
    return message


def decode_from_engine(body: bytes) -> FromEngine:
    """A message from the engine; raises FrameError when the body does not fit the schema."""
    try:
        message: FromEngine = _from_engine.decode(body)
    except _MISFITS as error:
        raise FrameError(f"malformed message from the engine: {error}") from error
    return message
