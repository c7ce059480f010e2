"""Arithmetic of what the runner will allocate, torch-free: the memory ledger uses it before anything exists."""

from __future__ import annotations

from collections.abc import Iterable

from quire.base.paging import pages_for
from quire.models.info import KVLayerSpec

TOKEN_BYTES = 4
"""A row keeps its token ids as int32."""
PAGE_ID_BYTES = 4
"""A row keeps its page ids as int32."""
ROW_STATE_BYTES = 56
"""Sampling state of a row on the device: four float32, two float64 and three int64."""


def kv_bytes(layers: Iterable[KVLayerSpec], *, num_pages: int, page_size: int, itemsize: int) -> int:
    """Bytes of all KV pages: pages x tokens per page x `KVLayerSpec.bytes_per_token`, summed over layers."""
    return num_pages * page_bytes(layers, page_size=page_size, itemsize=itemsize)


def page_bytes(layers: Iterable[KVLayerSpec], *, page_size: int, itemsize: int) -> int:
    """Bytes of one page over all layers."""
    return page_size * sum(layer.bytes_per_token(itemsize) for layer in layers)


def row_bytes(*, max_num_seqs: int, max_model_len: int, page_size: int) -> int:
    """Bytes of the rows' token ids, page tables and sampling state on the device.

    A row has room for one token more than a request may hold, because a step that overlaps the last one draws it.
    """
    tokens = (max_model_len + 1) * TOKEN_BYTES
    pages = pages_for(max_model_len + 1, page_size) * PAGE_ID_BYTES
    return max_num_seqs * (tokens + pages + ROW_STATE_BYTES)
