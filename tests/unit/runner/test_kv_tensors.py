"""The KV pages: bytes equal the arithmetic, copies read before they write, poison hits its pages only."""

from __future__ import annotations

import pytest
import torch

from quire.attention import select_backend
from quire.base.paging import pages_for
from quire.models.info import KVLayerSpec, ModelInfo
from quire.runner.kv_tensors import allocate, copy_pages, poison
from quire.runner.sizing import kv_bytes, page_bytes

LAYERS = (KVLayerSpec(2, 16), KVLayerSpec(1, 64), KVLayerSpec(2, 16))


def pages(dtype=torch.float32, num_pages=6, page_size=8):
    return allocate(
        LAYERS,
        attention=select_backend("cpu"),
        num_pages=num_pages,
        page_size=page_size,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def info():
    return ModelInfo(
        path="",
        architecture="",
        family="",
        implementation="native",
        config={},
        kv_layers=LAYERS,
        max_position=64,
        vocab_rows=8,
        stored_dtype="float32",
        weight_files=(),
        num_parameters=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
def test_allocated_bytes_equal_the_arithmetic(dtype, page_size):
    """S10: 2 x layers x kv heads x head size x bytes per token, and the scales of int8, to the byte."""
    tensors = pages(dtype, num_pages=5, page_size=page_size)
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert allocated == kv_bytes(LAYERS, num_pages=5, page_size=page_size, itemsize=dtype.itemsize)
    assert allocated == 5 * page_size * info().kv_bytes_per_token(dtype.itemsize)
    assert page_bytes(LAYERS, page_size=page_size, itemsize=dtype.itemsize) * 5 == allocated


def test_a_sequence_wastes_less_than_one_page():
    """S16"""
    for page_size in (8, 16, 32):
        for num_tokens in range(1, 200):
            assert 0 <= pages_for(num_tokens, page_size) * page_size - num_tokens < page_size


def test_copies_read_every_source_before_any_destination_is_written():
    """S18: a swap and a chain in one call."""
    kv = pages()
    for layer in kv:
        layer.copy_(torch.arange(6).view(1, 6, *[1] * (layer.dim() - 2)).expand_as(layer))
    copy_pages(kv, [(0, 1), (1, 0), (2, 3), (3, 4)])
    for layer in kv:
        for page, expected in enumerate([1, 0, 2, 2, 3, 5]):
            assert (layer[:, page] == expected).all()


def test_no_pairs_copy_nothing():
    kv = pages()
    versions = [layer._version for layer in kv]
    copy_pages(kv, [])
    poison(kv, [])
    assert [layer._version for layer in kv] == versions


def test_poison_fills_its_pages_and_no_others():
    """SEC-35"""
    kv = pages()
    poison(kv, [1, 4])
    for layer in kv:
        assert layer[:, [1, 4]].isnan().all()
        assert (layer[:, [0, 2, 3, 5]] == 0).all()


def test_poisoned_int8_pages_hold_scales_that_are_nan():
    """SEC-35"""
    kv = pages(torch.int8)
    poison(kv, [1, 4])
    for layer in kv:
        assert layer[:, [1, 4]].contiguous().view(torch.float32).isnan().all()
        assert (layer[:, [0, 2, 3, 5]] == 0).all()


def test_a_layout_that_disagrees_with_the_ledger_is_refused():
    class Padded:
        name = "padded"

        def kv_shape(self, num_pages, page_size, num_kv_heads, head_dim, dtype):
            return (2, num_pages, num_kv_heads, page_size, head_dim + 1)

    with pytest.raises(AssertionError, match="padded"):
        allocate(LAYERS, attention=Padded(), num_pages=2, page_size=8, dtype=torch.float32, device=torch.device("cpu"))
