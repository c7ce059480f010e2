"""A safetensors header is checked against the file before anything of it is believed."""

import json
import tracemalloc

import pytest

from quire.base.errors import WeightError
from quire.models.tensor_headers import MAX_JSON_BYTES, read_tensor_headers

DATA_BYTES = 64
GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]},
}
FILE_BYTES = 8 + len(json.dumps(GOOD)) + DATA_BYTES
CORPUS = [0, -1, 2**31 - 1, 2**32, 2**63 - 1, FILE_BYTES - 1, FILE_BYTES, FILE_BYTES + 1, 2**64, True, 1.0, "8", None]
FIELDS = [
    (tensor, key, index)
    for tensor in ("a", "b")
    for key, count in (("shape", 2 if tensor == "a" else 1), ("data_offsets", 2))
    for index in range(count)
]


def write(checkpoint_dir, header, data=bytes(DATA_BYTES), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    checkpoint_dir.raw("w.safetensors", text, data, length=length)
    return checkpoint_dir.path / "w.safetensors"


def test_a_sound_header_is_read(checkpoint_dir):
    """S7"""
    headers = read_tensor_headers(write(checkpoint_dir, GOOD))
    assert set(headers) == {"a", "b"}
    assert (headers["a"].dtype, headers["a"].shape, headers["a"].num_elements) == ("F32", (2, 4), 8)
    assert headers["b"].num_bytes == 32


def test_an_empty_tensor_and_a_scalar_are_sound(checkpoint_dir):
    header = {
        "none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]},
        "one": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    headers = read_tensor_headers(write(checkpoint_dir, header, bytes(4)))
    assert headers["none"].num_elements == 0
    assert headers["one"].num_elements == 1


@pytest.mark.parametrize("value", CORPUS, ids=repr)
@pytest.mark.parametrize(("tensor", "key", "index"), FIELDS)
def test_every_wrong_integer_in_the_header_is_a_weight_error(checkpoint_dir, tensor, key, index, value):
    """SEC-7: each integer field of shapes and offsets over the corpus."""
    header = json.loads(json.dumps(GOOD))
    before = header[tensor][key][index]
    header[tensor][key][index] = value
    path = write(checkpoint_dir, header)
    if type(value) is int and value == before:
        read_tensor_headers(path)
        return
    with pytest.raises(WeightError, match=r"w\.safetensors"):
        read_tensor_headers(path)


@pytest.mark.parametrize(
    "value", [0, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1, FILE_BYTES - 1, FILE_BYTES, FILE_BYTES + 1]
)
def test_every_wrong_header_length_is_a_weight_error(checkpoint_dir, value):
    """SEC-7: the header's own length over the corpus (2**64 - 1 is -1 in eight bytes)."""
    with pytest.raises(WeightError, match=r"w\.safetensors"):
        read_tensor_headers(write(checkpoint_dir, GOOD, length=value))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_header_length_off_by_one_is_a_weight_error(checkpoint_dir, change):
    """SEC-7"""
    with pytest.raises(WeightError):
        read_tensor_headers(write(checkpoint_dir, GOOD, length=len(json.dumps(GOOD)) + change))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, FILE_BYTES - 1, FILE_BYTES + 1])
def test_a_file_cut_or_grown_is_a_weight_error(checkpoint_dir, size):
    """SEC-7"""
    path = write(checkpoint_dir, GOOD)
    path.write_bytes((path.read_bytes() + b"\0")[:size])
    with pytest.raises(WeightError):
        read_tensor_headers(path)


def test_a_product_that_wraps_in_64_bits_is_refused(checkpoint_dir):
    """SEC-7: 2^32 x 2^32 x 4 bytes is 0 modulo 2^64."""
    header = {"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}
    with pytest.raises(WeightError, match="takes 73786976294838206464"):
        read_tensor_headers(write(checkpoint_dir, header, b""))


BAD_ENTRIES = {
    "an unknown dtype": {"dtype": "F31", "shape": [16], "data_offsets": [0, 64]},
    "a dtype that is no string": {"dtype": 4, "shape": [16], "data_offsets": [0, 64]},
    "an unhashable dtype": {"dtype": ["F32"], "shape": [16], "data_offsets": [0, 64]},
    "a shape that is no list": {"dtype": "F32", "shape": 16, "data_offsets": [0, 64]},
    "too many dimensions": {"dtype": "F32", "shape": [1] * 16 + [16], "data_offsets": [0, 64]},
    "three offsets": {"dtype": "F32", "shape": [16], "data_offsets": [0, 32, 64]},
    "offsets reversed": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]},
    "no offsets": {"dtype": "F32", "shape": [16]},
    "an extra key": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], "run": "me"},
    "no object": [1, 2, 3],
}


@pytest.mark.parametrize("entry", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_malformed_entry_is_a_weight_error(checkpoint_dir, entry):
    """SEC-7"""
    with pytest.raises(WeightError, match="tensor 'a'"):
        read_tensor_headers(write(checkpoint_dir, {"a": entry}))


def entry(begin, end):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "spans", [[(0, 32), (16, 48), (48, 64)], [(0, 30), (32, 64)], [(1, 64)], [(0, 63)], [(0, 64), (0, 64)], []]
)
def test_overlapping_gapped_or_short_tensors_are_refused(checkpoint_dir, spans):
    """SEC-7: tensors must tile the data exactly."""
    header = {f"t{i}": entry(*span) for i, span in enumerate(spans)}
    with pytest.raises(WeightError):
        read_tensor_headers(write(checkpoint_dir, header))


HEADERS = {
    "duplicate keys": b'{"a":%b,"a":%b}' % ((b'{"dtype":"U8","shape":[64],"data_offsets":[0,64]}',) * 2),
    "duplicate inner keys": b'{"a":{"dtype":"U8","dtype":"I8","shape":[64],"data_offsets":[0,64]}}',
    "deep nesting": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "no object": b"[]",
    "invalid UTF-8": b'{"\xff":1}',
    "no JSON": b"\x80\x04\x95pickle",
    "huge integer": b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,64]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_hostile_json_is_a_weight_error(checkpoint_dir, header):
    """SEC-7"""
    with pytest.raises(WeightError, match="damaged"):
        read_tensor_headers(write(checkpoint_dir, header))


@pytest.mark.slow
@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"ab",', b"1.5,"])
def test_the_largest_hostile_header_stays_below_a_gibibyte(checkpoint_dir, unit):
    """SEC-7"""
    count = MAX_JSON_BYTES // len(unit) - 4
    path = write(checkpoint_dir, b'{"a":[' + unit * count + b"0]}")
    tracemalloc.start()
    try:
        with pytest.raises(WeightError):
            read_tensor_headers(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**30


def test_a_header_over_the_cap_is_refused_before_it_is_read(checkpoint_dir):
    """SEC-7"""
    path = write(checkpoint_dir, b"{}", b"", length=MAX_JSON_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(MAX_JSON_BYTES + 100)  # sparse: takes no disk
    tracemalloc.start()
    try:
        with pytest.raises(WeightError, match="at most"):
            read_tensor_headers(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_a_weight_error(tmp_path):
    with pytest.raises(WeightError, match="cannot read"):
        read_tensor_headers(tmp_path / "none.safetensors")
