"""Reads the header of a safetensors file and trusts nothing in it (SEC-7).

It knows the container: eight bytes of little-endian length, that many bytes of JSON, then the tensors. Every count,
dimension and offset is checked against the real file length with Python's unbounded integers, so nothing wraps; no
tensor is read here. What the tensors mean is the loader's business. Torch-free.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.base.errors import WeightError

MAX_JSON_BYTES = 16 * 2**20
"""Cap on any JSON file or header. Parsed Python objects take up to ~25 times the text, so this keeps a hostile file
below 1 GiB of memory; 100 000 tensors need about 12 MiB."""
MAX_DIMENSIONS = 16
_LENGTH_BYTES = 8
_INT64_MAX = 2**63 - 1

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per number of each dtype of the safetensors format that a whole number of bytes holds."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as the file describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    """Name of the file that holds it, without directory."""
    offset: int
    """Of its first byte in that file."""

    @property
    def num_elements(self) -> int:
        """Numbers in the tensor."""
        return _product(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return self.num_elements * DTYPE_BYTES[self.dtype]


def read_tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors a safetensors file holds, by name, after checking that the file really holds them.

    Raises:
        WeightError: when the file is missing, truncated or its header does not describe it exactly.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = _header_length(file.read(_LENGTH_BYTES), file_bytes, path.name)
            text = file.read(header_bytes)
    except OSError as error:
        raise WeightError(f"cannot read weights: {error}") from error
    entries = parse_json(text, path.name, unique_keys=True)
    entries.pop("__metadata__", None)
    return _check_entries(entries, _LENGTH_BYTES + header_bytes, file_bytes, path.name)


def parse_json(text: bytes, name: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in `text`; `name` is the file to blame.

    Raises:
        WeightError: for anything but one object in UTF-8, nesting too deep, or (if asked) a repeated key.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_dict if unique_keys else None)
    except RecursionError:
        raise WeightError(f"{name} is damaged: its JSON is nested too deeply") from None
    except ValueError as error:
        raise WeightError(f"{name} is damaged: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise WeightError(f"{name} is damaged: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_file(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in a file of at most MAX_JSON_BYTES.

    Raises:
        WeightError: when the file cannot be read, is too large or is not one JSON object.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise WeightError(f"{path.name} has {size} bytes; at most {MAX_JSON_BYTES} are read")
            text = file.read(MAX_JSON_BYTES)
    except OSError as error:
        raise WeightError(f"cannot read {path.name}: {error}") from error
    return parse_json(text, path.name, unique_keys=unique_keys)


def _header_length(prefix: bytes, file_bytes: int, name: str) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise WeightError(f"{name} is damaged: {file_bytes} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > file_bytes - _LENGTH_BYTES:
        raise WeightError(
            f"{name} is damaged or truncated: its header claims {length} bytes, the file has {file_bytes} in all"
        )
    if length > MAX_JSON_BYTES:
        raise WeightError(f"{name} has a header of {length} bytes; at most {MAX_JSON_BYTES} are read")
    return length


def _unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _check_entries(entries: dict[str, Any], start: int, file_bytes: int, file: str) -> dict[str, TensorHeader]:
    headers: dict[str, TensorHeader] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        begin, end = _check_entry(name, entry, file)
        headers[name] = TensorHeader(entry["dtype"], tuple(entry["shape"]), file, start + begin)
        spans.append((begin, end, name))
    # Spans in order must tile the data exactly: no gap, no overlap, nothing beyond the end of the file.
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise WeightError(f"{file} is damaged: tensor {name!r} starts at byte {begin}, expected {position}")
        position = end
    if start + position != file_bytes:
        raise WeightError(
            f"{file} is damaged or truncated: its tensors take {position} bytes, the file holds {file_bytes - start}"
        )
    return headers


def _check_entry(name: str, entry: Any, file: str) -> tuple[int, int]:
    """Where the tensor begins and ends behind the header; raises WeightError."""
    where = f"{file} is damaged: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise WeightError(f"{where} has dtype {str(dtype)[:40]!r}; known: {', '.join(DTYPE_BYTES)}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise WeightError(f"{where} has shape {str(shape)[:200]}; expected up to {MAX_DIMENSIONS} integers from 0")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise WeightError(f"{where} has data_offsets {str(offsets)[:200]}; expected two integers from 0")
    begin, end = offsets
    num_bytes = _product(shape) * DTYPE_BYTES[dtype]
    if num_bytes > _INT64_MAX or num_bytes != end - begin:
        raise WeightError(f"{where} has {end - begin} bytes; {dtype} of shape {list(shape)} takes {num_bytes}")
    return begin, end


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _INT64_MAX for item in value)


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
