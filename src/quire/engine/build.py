"""Puts an engine together: find the checkpoint, decide, load, allocate, warm up. The engine's only assembly line.

The one file of `engine/` that reaches the device tower; a front end in another process never imports it.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch

from quire.attention import select_backend
from quire.base.config import EngineConfig
from quire.base.cpu_kernels import REFERENCE, chosen_instruction_set, instruction_sets
from quire.base.errors import ConfigError, StepError
from quire.base.pooling import PoolingParams
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.cache.manager import KVCacheManager
from quire.engine.constraints import ConstraintCompiler
from quire.engine.core import EngineCore
from quire.engine.info import EngineInfo
from quire.engine.messages import AddMessage
from quire.engine.resolve import DeviceFacts, ResolvedConfig, resolve
from quire.layers.context import BuildContext
from quire.models.hub import locate_model
from quire.models.info import ModelInfo
from quire.models.inspect import inspect_model
from quire.models.loader import load_model
from quire.models.packed_cache import PackedCache, cache_folder
from quire.quant.schemes import select_scheme
from quire.runner.device import Device, select_device
from quire.runner.encoder_runner import EncoderRunner, RunnableEncoder
from quire.runner.input_batch import RunnerLimits
from quire.runner.kv_tensors import allocate
from quire.runner.model_runner import ModelRunner
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.scheduler import Scheduler
from quire.text.grammar_matcher import GrammarCompiler
from quire.text.grammar_vocabulary import build_vocabulary
from quire.text.thinking import TokenSpelling
from quire.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

logger = logging.getLogger(__name__)


class StartupLedger:
    """The start-up's phases and what each took, printed as they end."""

    def __init__(self, report: Callable[[str], None], began: float | None = None) -> None:
        self._report = report
        self._began = time.perf_counter() if began is None else began
        self.lines: list[str] = []

    def phase(self, name: str) -> None:
        """Note that everything since the last call was `name`."""
        now = time.perf_counter()
        self.lines.append(f"{name:<24}{now - self._began:6.2f} s")
        self._began = now
        self._report(name)


def build_core(
    config: EngineConfig, *, report: Callable[[str], None] = logger.debug, began: float | None = None
) -> tuple[EngineCore, EngineInfo]:
    """Build a warmed-up engine core and the description its front end needs; `report` hears of each finished phase.

    `began` (`time.perf_counter()` seconds) is when importing this file began, which takes longer than all the rest.

    Raises:
        ConfigError, UnsupportedModelError, WeightError: when this model cannot run as asked.
    """
    ledger = StartupLedger(report, began)
    if began is not None:
        ledger.phase("load torch")
    for module in config.model.plugins:
        _import_plugin(module)
    device = select_device(config.model.device)
    info = inspect_model(locate_model(config.model.model, revision=config.model.revision))
    ledger.phase("read configuration")
    if device.torch_device.type == "cpu" and not instruction_sets():
        logger.warning(
            "the CPU kernels were not built when quire was installed, so it runs several times slower, on torch's ops; "
            "install a C++ compiler (g++ or clang++) and install quire again"
        )
    resolved = resolve(config, info, _facts(device), tokenizer_path=tokenizer_path(config, info))
    core = _assemble(info, resolved, device, ledger, _weight_cache(config, info, resolved))
    _warm_up(core, info)
    ledger.phase("warm-up token")
    return core, _describe(config, info, resolved, ledger)


def tokenizer_path(config: EngineConfig, info: ModelInfo) -> str:
    """Directory of the tokenizer: the model's own unless another was asked for."""
    if config.model.tokenizer is None:
        return info.path
    return str(locate_model(config.model.tokenizer, weights=False))


def _facts(device: Device) -> DeviceFacts:
    return DeviceFacts(
        name=device.torch_device.type,
        auto_dtype=str(device.auto_dtype()).removeprefix("torch."),
        free_bytes=device.available_memory(),
        threads=device.threads,
        kernels=chosen_instruction_set() if device.torch_device.type == "cpu" else REFERENCE,
    )


def _weight_cache(config: EngineConfig, info: ModelInfo, resolved: ResolvedConfig) -> PackedCache | None:
    """Where packed weights are kept; None where none are, or where other code than ours decides what they become."""
    folder = cache_folder(config.model.weight_cache)
    is_ours = info.implementation == "native" and not config.model.plugins
    return PackedCache(folder) if folder and is_ours and resolved.device == "cpu" else None


def _assemble(
    info: ModelInfo, resolved: ResolvedConfig, device: Device, ledger: StartupLedger, cache: PackedCache | None
) -> EngineCore:
    torch.set_num_threads(resolved.threads)
    dtype = getattr(torch, resolved.dtype)
    attention = select_backend(resolved.device, dtype=dtype)
    context = BuildContext(
        dtype=dtype,
        device=device.torch_device,
        attention=attention,
        max_model_len=resolved.max_model_len,
        scheme=select_scheme(resolved.weight_format, device=device.torch_device, dtype=dtype),
    )
    model = load_model(info, context, cache=cache)
    device.settle(resolved.threads, on_kernels=resolved.runs_on_kernels)
    ledger.phase("load weights")
    kv = allocate(
        info.kv_layers,
        attention=attention,
        num_pages=resolved.memory.num_pages,
        page_size=resolved.page_size,
        dtype=getattr(torch, resolved.kv_cache_dtype),
        device=device.torch_device,
    )
    runner: ModelRunner | EncoderRunner
    if info.is_encoder:
        encoder, size = cast(RunnableEncoder, model), resolved.page_size
        runner = EncoderRunner(
            encoder, backend=attention, device=device, kv=kv, page_size=size, vocab_size=info.vocab_rows
        )
    else:
        limits = RunnerLimits(
            max_num_seqs=resolved.max_num_seqs,
            max_model_len=resolved.max_model_len,
            page_size=resolved.page_size,
            vocab_size=info.vocab_rows,
        )
        runner = ModelRunner(model, backend=attention, device=device, kv=kv, limits=limits)
    ledger.phase("allocate KV pages")
    return EngineCore(
        build_scheduler(info, resolved),
        runner,
        constraints=_constraints(info, resolved),
        overlap=resolved.async_scheduling,
        debug=resolved.debug,
    )


def _constraints(info: ModelInfo, resolved: ResolvedConfig) -> ConstraintCompiler:
    """What makes requests' constraints; nothing is loaded until one asks for any."""

    def vocabulary() -> LLTokenizer:
        tokenizer = Tokenizer.load(resolved.tokenizer_path)
        return build_vocabulary(tokenizer, num_rows=info.vocab_rows, eos_token_ids=info.eos_token_ids)

    def spelling() -> TokenSpelling:
        tokenizer = Tokenizer.load(resolved.tokenizer_path)
        return TokenSpelling([tokenizer.token_bytes(token_id) for token_id in range(info.vocab_rows)])

    return ConstraintCompiler(GrammarCompiler(vocabulary), spelling)


def build_scheduler(info: ModelInfo, resolved: ResolvedConfig) -> Scheduler:
    """The scheduler and its cache for a resolved configuration."""
    cache = KVCacheManager(
        num_pages=resolved.memory.num_pages,
        page_size=resolved.page_size,
        enable_prefix_caching=resolved.enable_prefix_caching,
        fingerprint=f"{info.path}:{resolved.kv_cache_dtype}".encode(),
        debug=resolved.debug,
    )
    limits = SchedulerLimits(
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        max_prefill_tokens_mixed=resolved.max_prefill_tokens_mixed,
        max_model_len=resolved.max_model_len,
        whole_prompts=resolved.whole_prompts,
        policy=resolved.scheduling_policy,
        priority_ageing_seconds=resolved.priority_ageing_seconds,
    )
    return Scheduler(limits, cache, clock=time.monotonic, eos_token_ids=info.eos_token_ids)


def _warm_up(core: EngineCore, info: ModelInfo) -> None:
    """Run a step of a prompt and one of a decode, so that ready means ready and no user waits for what is made late."""
    count = 2 if core.scheduler.limits.max_model_len >= 4 else 1  # tokens of the prompt, and of the answer
    request = EngineRequest(
        request_id="warm-up",
        prompt_token_ids=[0] * count,
        params=SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True),
        max_tokens=1 if info.is_encoder else count,
        seed=0,
        arrival_time=time.monotonic(),
        pooling=info.pooling.pooling(PoolingParams()) if info.pooling and info.is_encoder else None,
    )
    core.inbox.put(AddMessage([request]))
    while core.has_work:
        for output in core.advance():
            if output.error is not None:
                raise StepError(f"the warm-up step failed: {output.error}")


def _describe(config: EngineConfig, info: ModelInfo, resolved: ResolvedConfig, ledger: StartupLedger) -> EngineInfo:
    return EngineInfo(
        model_path=resolved.model_path,
        tokenizer_path=resolved.tokenizer_path,
        served_names=resolved.served_names,
        max_model_len=resolved.max_model_len,
        vocab_rows=info.vocab_rows,
        eos_token_ids=info.eos_token_ids,
        default_sampling=dict(info.default_sampling) if config.model.generation_config == "auto" else {},
        pooling=info.pooling,
        max_num_seqs=resolved.max_num_seqs,
        max_num_waiting=resolved.max_num_waiting,
        seed=resolved.seed,
        created=int(time.time()),
        resolved=resolved.as_dict(),
        ledger=(*ledger.lines, *resolved.memory.lines()),
    )


def _import_plugin(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"plugin module {module!r} cannot be imported: {error}. Install it, or put its folder on PYTHONPATH"
        ) from error
