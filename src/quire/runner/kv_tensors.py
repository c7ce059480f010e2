"""The KV pages as tensors: allocation to the byte, copy-on-write copies, poison. Knows nothing of who owns a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from quire.attention.interface import AttentionBackend
from quire.base.host_memory import zeroed_memory
from quire.models.info import KVLayerSpec
from quire.runner.sizing import kv_bytes


def allocate(
    layers: Sequence[KVLayerSpec],
    *,
    attention: AttentionBackend,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[torch.Tensor]:
    """One zeroed KV tensor per layer, [2, P, ...] in the backend's layout; their bytes equal `sizing.kv_bytes`."""
    tensors = []
    for layer in layers:
        shape = attention.kv_shape(num_pages, page_size, layer.num_kv_heads, layer.head_dim, dtype)
        tensors.append(_zeros(shape, dtype, device))
    expected = kv_bytes(layers, num_pages=num_pages, page_size=page_size, itemsize=dtype.itemsize)
    actual = sum(tensor.nbytes for tensor in tensors)
    assert actual == expected, f"backend {attention.name} laid out {actual} bytes of KV, the ledger says {expected}"
    return tensors


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A zeroed tensor; on the host, of memory that is taken as KV is first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    return torch.frombuffer(zeroed_memory(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


def copy_pages(kv: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> None:
    """Copy pages (source, destination) in every layer; all sources are read before any destination is written."""
    if not pairs:
        return
    index = torch.tensor(pairs, dtype=torch.int64, device=kv[0].device)  # [pairs, 2]
    sources, destinations = index[:, 0].contiguous(), index[:, 1].contiguous()
    for layer in kv:
        layer.index_copy_(1, destinations, layer.index_select(1, sources))


def poison(kv: Sequence[torch.Tensor], pages: Sequence[int]) -> None:
    """Fill freed pages with NaN, so that a read before the next write shows (debug mode). In int8 pages the scales
    become NaN: four bytes of ones are one."""
    if not pages:
        return
    for layer in kv:
        index = torch.tensor(pages, dtype=torch.int64, device=layer.device)
        layer.index_fill_(1, index, -1 if layer.dtype == torch.int8 else float("nan"))
