"""The memory plan: arithmetic before allocation. `quire check`, the start-up log and the allocation share its numbers.

Torch-free. Budgets are bytes, never fractions of something measured: weights and KV are exact, the workspace of a step
is an estimate and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.base.errors import ConfigError
from quire.base.paging import pages_for
from quire.models.info import ModelInfo
from quire.models.weight_sizes import packed_weight_bytes
from quire.runner.sizing import page_bytes, row_bytes

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
KV_ITEMSIZE = ITEMSIZE | {"int8": 1}
WEIGHT_BYTES = ITEMSIZE | {"bfloat16_dot": 2, "int8": 1 + 2 / 32, "int4": 0.5 + 2 / 32}
"""Bytes per weight by format, for models whose shapes are not known; quantized ones share a scale in groups of 32."""
_AUTO_SHARE = 0.5
"""Share of what is left after weights and workspace that the cache takes when no budget is given: the machine is not
ours alone."""


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What is to be fitted: how much one step may hold, in which precision, and what was asked for."""

    max_num_seqs: int
    max_num_batched_tokens: int
    weight_format: str
    kv_dtype: str
    page_size: int
    is_packed: bool = False
    """Whether weights are held in the panels of the CPU kernels, or else as tensors of `weight_format`."""
    max_model_len: int | None = None
    """Tokens; None takes the longest that fits."""
    kv_budget: int | None = None
    """Bytes for KV pages; None takes what full concurrency can use, within a share of what is free."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a model takes on a device, in bytes, and the lengths and concurrency that buys."""

    weight_bytes: int
    workspace_bytes: int
    row_bytes: int
    kv_bytes_per_token: int
    page_bytes: int
    num_pages: int
    page_size: int
    max_model_len: int
    free_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of all pages."""
        return self.num_pages * self.page_bytes

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weight_bytes + self.workspace_bytes + self.row_bytes + self.kv_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens the cache holds."""
        return self.num_pages * self.page_size

    def lines(self) -> list[str]:
        """The arithmetic as lines to print."""
        full = self.num_tokens / self.max_model_len
        return [
            f"weights     {format_bytes(self.weight_bytes):>11}",
            f"KV pages    {format_bytes(self.kv_bytes):>11}  = {self.num_pages} pages x {self.page_size} tokens x "
            f"{self.kv_bytes_per_token} B",
            f"workspace   {format_bytes(self.workspace_bytes + self.row_bytes):>11}  (estimate)",
            f"total       {format_bytes(self.total_bytes):>11}  of {format_bytes(self.free_bytes)} free",
            f"room for {self.num_tokens} tokens: {full:.1f} requests of the full {self.max_model_len}, "
            f"more when they are shorter",
        ]


def plan_memory(info: ModelInfo, request: MemoryRequest, *, free_bytes: int) -> MemoryPlan:
    """Decide the number of pages and, when no length was asked for, the longest length that fits.

    Raises:
        ConfigError: when the model, or the length asked for, does not fit, with the numbers and what would fit.
    """
    weights = weight_bytes(info, request)
    wanted_len = request.max_model_len or info.max_position
    workspace = workspace_bytes(info, request, wanted_len)
    kv_itemsize = KV_ITEMSIZE[request.kv_dtype]
    per_page = page_bytes(info.kv_layers, page_size=request.page_size, itemsize=kv_itemsize)
    rows = row_bytes(max_num_seqs=request.max_num_seqs, max_model_len=wanted_len, page_size=request.page_size)
    budget = request.kv_budget
    if budget is None:
        left = max(0, free_bytes - weights - workspace - rows)
        budget = min(_useful_pages(info, request, wanted_len) * per_page, int(left * _AUTO_SHARE))
    num_pages = budget // per_page
    fitting_len = min(wanted_len, num_pages * request.page_size)
    plan = MemoryPlan(
        weight_bytes=weights,
        workspace_bytes=workspace,
        row_bytes=rows,
        kv_bytes_per_token=info.kv_bytes_per_token(kv_itemsize),
        page_bytes=per_page,
        num_pages=num_pages,
        page_size=request.page_size,
        max_model_len=request.max_model_len or fitting_len,
        free_bytes=free_bytes,
    )
    _check_fits(plan, wanted_len, is_given=request.max_model_len is not None)
    return plan


def _useful_pages(info: ModelInfo, request: MemoryRequest, wanted_len: int) -> int:
    """Pages beyond which there is nothing to gain: for all rows at full length, or for what two steps of an encoder,
    one of them in flight, compute."""
    if info.is_encoder:
        return 2 * (pages_for(request.max_num_batched_tokens, request.page_size) + request.max_num_seqs)
    return request.max_num_seqs * pages_for(wanted_len, request.page_size)


def _check_fits(plan: MemoryPlan, wanted_len: int, *, is_given: bool) -> None:
    if plan.total_bytes > plan.free_bytes:
        over = plan.total_bytes - plan.free_bytes
        raise ConfigError(
            f"the model needs {format_bytes(plan.total_bytes)} (weights {format_bytes(plan.weight_bytes)}, KV pages "
            f"{format_bytes(plan.kv_bytes)}, workspace {format_bytes(plan.workspace_bytes + plan.row_bytes)}) and "
            f"{format_bytes(plan.free_bytes)} are free. To fit, save {format_bytes(over)}: a smaller "
            f"kv_cache_memory_bytes or max_model_len, dtype=bfloat16 for half the weights, or a smaller model"
        )
    needed = pages_for(wanted_len if is_given else 1, plan.page_size)
    if plan.num_pages < max(needed, 1):
        need = max(needed, 1) * plan.page_bytes
        holds = plan.num_pages * plan.page_size
        raise ConfigError(
            f"one request of {wanted_len} tokens needs {format_bytes(need)} of KV pages and the cache gets "
            f"{format_bytes(plan.kv_bytes)} ({holds} tokens). Set kv_cache_memory_bytes to at least {need}, or "
            f"max_model_len to at most {holds}"
        )


def weight_bytes(info: ModelInfo, request: MemoryRequest) -> int:
    """Bytes of the loaded weights: to the byte where they are packed and their shapes known."""
    if request.is_packed and info.shapes:
        return packed_weight_bytes(info.shapes, request.weight_format)
    return int(info.num_parameters * WEIGHT_BYTES[request.weight_format])


def workspace_bytes(info: ModelInfo, request: MemoryRequest, max_model_len: int) -> int:
    """Estimate of a step's activations: widest layer tensors in float32 for every token, scores, and logits.

    T x (8 E + 3 F) + H x 64 x L + 3 R x V numbers of 4 bytes; the reference attention scores at most a chunk of one
    request at a time, and 64 of its query rows stand for what is alive of them at once.
    """
    config = info.config
    width = _first_int(config, "hidden_size", "n_embd", "d_model", "dim")
    mlp = _first_int(
        config, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim", default=4 * width
    )
    heads = _first_int(config, "num_attention_heads", "n_head", "n_heads", default=1)
    step = request.max_num_batched_tokens * (8 * width + 3 * mlp)
    scores = heads * min(64, request.max_num_batched_tokens) * max_model_len
    logits = 3 * request.max_num_seqs * info.vocab_rows
    return 4 * (step + scores + logits)


def _first_int(config: dict[str, Any], *keys: str, default: int = 0) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int)), default)


def format_bytes(count: int) -> str:
    """A byte count for people: 1536 is 1.5 KiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
