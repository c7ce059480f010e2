"""Turns what the user asked into what the engine does: every default decided, every limit known, before weights load.

Torch-free: the facts about the device come in as data. The result is logged at start and served at `/server_info`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.base.config import EngineConfig
from quire.base.cpu_kernels import BF16_DOTS, REFERENCE
from quire.base.errors import ConfigError
from quire.engine.memory import WEIGHT_BYTES, MemoryPlan, MemoryRequest, plan_memory
from quire.engine.step_limits import CUDA_LIMITS, StepLimits, cpu_limits
from quire.models.info import ModelInfo

_PARALLEL_BYTES = 64 * 2**20
"""Weights from which a CPU step gains by more threads."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What resolving needs to know of a device."""

    name: str
    """`cpu` or `cuda`."""
    auto_dtype: str
    free_bytes: int
    threads: int
    kernels: str = REFERENCE
    """What ops run on: an instruction set of the compiled CPU kernels, or the reference ops in torch."""

    @property
    def has_cpu_kernels(self) -> bool:
        """Whether compiled CPU kernels run here."""
        return self.name == "cpu" and self.kernels != REFERENCE


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """Every setting as it will be used."""

    model_path: str
    tokenizer_path: str
    served_names: tuple[str, ...]
    architecture: str
    family: str
    implementation: str
    rope: str
    device: str
    threads: int
    kernels: str
    dtype: str
    weight_format: str
    kv_cache_dtype: str
    page_size: int
    enable_prefix_caching: bool
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_prefill_tokens_mixed: int
    whole_prompts: bool
    """Whether a prompt is computed in one step: an encoder's is."""
    max_num_waiting: int
    scheduling_policy: str
    priority_ageing_seconds: float
    async_scheduling: bool
    seed: int
    debug: bool
    runs_on_kernels: bool
    """Whether compiled CPU kernels do the model's work, not torch."""
    memory: MemoryPlan

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain data, the memory plan included, for the log and `/server_info` (no file paths)."""
        hidden = {"model_path", "tokenizer_path", "memory"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}
        memory = dataclasses.asdict(self.memory) | {"kv_bytes": self.memory.kv_bytes}
        return values | {"memory": memory}


def served_names(config: EngineConfig) -> tuple[str, ...]:
    """Names the API answers to: those asked for, else the model as the user wrote it (a path: its last part)."""
    if config.model.served_model_name:
        return config.model.served_model_name
    model = config.model.model
    is_path = Path(model).is_absolute() or model.startswith((".", "~")) or Path(model).is_dir()
    return (Path(model).expanduser().resolve().name,) if is_path else (model,)


def resolve(config: EngineConfig, info: ModelInfo, facts: DeviceFacts, *, tokenizer_path: str) -> ResolvedConfig:
    """Decide every setting for this model on this device.

    Raises:
        ConfigError: when something asked for cannot be done, naming the setting that would change it.
    """
    dtype = facts.auto_dtype if config.model.dtype == "auto" else config.model.dtype
    weight_format = _weight_format(config, info, facts, dtype)
    kv_dtype = _kv_dtype(config, info, facts, dtype)
    _check_model_settings(config, info)
    threads = config.model.threads or _auto_threads(facts, int(info.num_parameters * WEIGHT_BYTES[weight_format]))
    limits = _step_limits(config, info, facts, dtype=dtype, threads=threads)
    request = MemoryRequest(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        weight_format=weight_format,
        kv_dtype=kv_dtype,
        page_size=config.cache.page_size,
        is_packed=facts.has_cpu_kernels and dtype == "float32",
        max_model_len=config.model.max_model_len,
        kv_budget=config.cache.kv_cache_memory_bytes,
    )
    memory = plan_memory(info, request, free_bytes=facts.free_bytes)
    scheduler = config.scheduler
    return ResolvedConfig(
        model_path=info.path,
        tokenizer_path=tokenizer_path,
        served_names=served_names(config),
        architecture=info.architecture,
        family=info.family,
        implementation=info.implementation,
        rope=info.rope,
        device=facts.name,
        threads=threads,
        kernels=facts.kernels,
        dtype=dtype,
        weight_format=weight_format,
        kv_cache_dtype=kv_dtype,
        page_size=config.cache.page_size,
        enable_prefix_caching=config.cache.enable_prefix_caching and not info.is_encoder,
        whole_prompts=info.is_encoder,
        max_model_len=memory.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_prefill_tokens_mixed=limits.max_prefill_tokens_mixed,
        max_num_waiting=scheduler.max_num_waiting,
        scheduling_policy=scheduler.scheduling_policy,
        priority_ageing_seconds=scheduler.priority_ageing_seconds,
        async_scheduling=scheduler.async_scheduling,
        seed=config.model.seed,
        debug=config.cache.debug,
        runs_on_kernels=_runs_on_kernels(facts, info, dtype),
        memory=memory,
    )


def _step_limits(config: EngineConfig, info: ModelInfo, facts: DeviceFacts, *, dtype: str, threads: int) -> StepLimits:
    """How much one step may take; what was asked for stays as it is."""
    asked = config.scheduler
    if facts.name == "cuda":
        defaults = CUDA_LIMITS
    else:
        kernels = facts.kernels if _runs_on_kernels(facts, info, dtype) else REFERENCE
        defaults = cpu_limits(info, kernels=kernels, threads=threads)
    seqs, tokens = asked.max_num_seqs or defaults.max_num_seqs, asked.max_num_batched_tokens
    if tokens is not None and tokens < seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({tokens}) is below max_num_seqs ({seqs}): a step could not advance every running "
            f"request by one token. Raise the first or lower the second"
        )
    if info.is_encoder:
        return _encoder_limits(seqs, tokens, defaults, longest=config.model.max_model_len or info.max_position)
    tokens = tokens or max(defaults.max_num_batched_tokens, seqs)
    mixed = asked.max_prefill_tokens_mixed or defaults.max_prefill_tokens_mixed
    return StepLimits(max_num_seqs=seqs, max_num_batched_tokens=tokens, max_prefill_tokens_mixed=min(mixed, tokens))


def _encoder_limits(seqs: int, tokens: int | None, defaults: StepLimits, *, longest: int) -> StepLimits:
    """The limits of a model that computes every prompt in one step, whatever else the step holds."""
    if tokens is not None and tokens < longest:
        raise ConfigError(
            f"max_num_batched_tokens ({tokens}) is below the {longest} tokens a prompt may have, and an encoder "
            f"computes a prompt in one step. Raise it, or set max_model_len to {tokens}"
        )
    tokens = tokens or max(defaults.max_num_batched_tokens, seqs, longest)
    return StepLimits(max_num_seqs=seqs, max_num_batched_tokens=tokens, max_prefill_tokens_mixed=tokens)


def _auto_threads(facts: DeviceFacts, weight_bytes: int) -> int:
    """All cores, or one for a model so small that handing work to a second thread takes longer than doing it."""
    return facts.threads if weight_bytes >= _PARALLEL_BYTES else 1


def _runs_on_kernels(facts: DeviceFacts, info: ModelInfo, dtype: str) -> bool:
    """Whether compiled CPU kernels do a model's work, not torch."""
    return facts.has_cpu_kernels and dtype == "float32" and info.implementation == "native"


def _kv_dtype(config: EngineConfig, info: ModelInfo, facts: DeviceFacts, dtype: str) -> str:
    """Precision of K and V: where nothing else is asked for, the compiled CPU kernels keep a checkpoint's bfloat16."""
    asked = config.cache.kv_cache_dtype
    if asked == "float16" and facts.has_cpu_kernels and dtype == "float32":
        raise ConfigError(
            "kv_cache_dtype is float16, which the compiled CPU kernels do not read. Set kv_cache_dtype to bfloat16 (as "
            "many bytes), int8 or float32"
        )
    if asked != "auto":
        return asked
    if info.is_encoder:
        return dtype  # its pages are a workspace: narrow ones would save little and round every score
    is_narrow = (
        config.model.dtype == "auto" and info.stored_dtype == "bfloat16" and _runs_on_kernels(facts, info, dtype)
    )
    return "bfloat16" if is_narrow else dtype


def _weight_format(config: EngineConfig, info: ModelInfo, facts: DeviceFacts, dtype: str) -> str:
    """How weights are held. The CPU kernels take bfloat16 as it is in the checkpoint.

    Where the processor multiplies pairs of bfloat16, inputs are rounded to it as well, unless float32 was asked for.
    """
    asked = config.model.quantization
    can_pack = _runs_on_kernels(facts, info, dtype)
    if asked != "none":
        if not can_pack:
            raise ConfigError(
                f"quantization is {asked}, which needs the compiled CPU kernels, dtype float32 (or auto) and a model "
                f"with an implementation of quire's own; here: device {facts.name}, kernels "
                f"{facts.kernels}, dtype {dtype}, {info.implementation} implementation. "
                f"Set quantization to none"
            )
        return asked
    if not can_pack or info.stored_dtype != "bfloat16":
        return dtype
    return "bfloat16_dot" if config.model.dtype == "auto" and facts.kernels in BF16_DOTS else "bfloat16"


def _check_model_settings(config: EngineConfig, info: ModelInfo) -> None:
    asked = config.model.max_model_len
    if asked is not None and asked > info.max_position:
        raise ConfigError(
            f"max_model_len is {asked}; this checkpoint's configuration promises {info.max_position} positions. Lower "
            f"it, or set the rope scaling the model was trained for in its config.json"
        )
    if config.model.tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size is {config.model.tensor_parallel_size}; this version runs a model on one "
            f"device. Set it to 1"
        )
