"""Bytes of a checkpoint's weights once they are packed, from names and shapes alone: what `quire check` plans with.

Exact for every native family (a test builds each of them and compares); torch-free. Which tensors share a matrix
matters because a matrix takes whole panels.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from quire.base.packed_layout import packed_bytes, table_format

Shape = tuple[int, ...]

_UNUSED = re.compile(
    r".*(\.inv_freq|\.masked_bias|\.(attn|attention)\.bias)|.*(vision_tower|multi_modal_projector)\..*"
)
"""Buffers and other models' parts, which the loader ignores."""
_FUSED = re.compile(
    r"(.*?)(?:(?P<qkv>[qkv]_proj|[qkv]_lin|self\.(query|key|value))|(?P<gate_up>(gate|up)_proj|w1|w3))\.weight"
)
_TABLES = re.compile(r".*(embed_tokens|wte|embed_in|word_embeddings|lm_head|embed_out)\.weight")
_POSITIONS = re.compile(r".*(wpe|embed_positions|position_embeddings|token_type_embeddings)\.weight")
_ROUTERS = re.compile(r".*\.gate\.weight")
_TRANSPOSED = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
_HEADS = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")


def loaded_shapes(shapes: Mapping[str, Shape], *, is_tied: bool, ignored: Sequence[str] = ()) -> dict[str, Shape]:
    """The tensors that fill the model: a tied head that is stored as well is compared and not loaded."""
    unused = re.compile("|".join((_UNUSED.pattern, *ignored)))
    return {
        name: shape
        for name, shape in shapes.items()
        if not unused.fullmatch(name) and not (is_tied and _HEADS.fullmatch(name))
    }


def packed_weight_bytes(shapes: Mapping[str, Shape], weight_format: str) -> int:
    """Bytes of all weights: matrices in `weight_format`, everything else in float32."""
    plain = 0
    matrices: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for name, shape in shapes.items():
        if len(shape) < 2 or _POSITIONS.fullmatch(name):
            plain += 4 * math.prod(shape)
            continue
        rows, columns = shape[-2:] if not _TRANSPOSED.fullmatch(name) else shape[:-3:-1]
        matrices[_matrix_of(name)].append((rows, columns, shape[0] if len(shape) == 3 else 1))
    return plain + sum(_bytes_of(name, parts, weight_format) for name, parts in matrices.items())


def _matrix_of(name: str) -> str:
    """One name for all tensors that lie in one matrix, one after the other."""
    fused = _FUSED.fullmatch(name)
    return name if fused is None else f"{fused[1]}{'qkv' if fused['qkv'] else 'gate_up'}"


def _bytes_of(name: str, parts: list[tuple[int, int, int]], weight_format: str) -> int:
    if _TABLES.fullmatch(name):
        weight_format = table_format(weight_format)
    elif _ROUTERS.fullmatch(name):
        weight_format = "float32"
    _, columns, count = parts[0]
    return count * packed_bytes(sum(rows for rows, _, _ in parts), columns, weight_format)
