"""One generic adapter: runs decoders without a native file on transformers' model code and quire's paged attention.

Transformers lets a model take its attention function from a registry. We register one function, once, under our own
name; it holds no state. What a step needs (pages, plan, backend) travels as an argument through the model's own keyword
arguments to that function, so two models, or two threads, never meet. Before weights are read, a probe sends one token
through the empty model and records what each layer asks of attention: whatever paged attention cannot do (a mask, a
second kind of state, an unknown option) is refused by name then, not computed wrongly later.

Nothing of a checkpoint directory reaches transformers but the plain values of config.json; its weights come through
`models/loader.py` like any other. This is the only file that imports transformers' models.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quire.attention.interface import AttentionBackend, AttentionPlan, AttentionSpec
from quire.base.errors import ConfigError, UnsupportedModelError
from quire.layers.config import KVLayerSpec
from quire.layers.context import BuildContext
from quire.models.info import ModelInfo
from quire.quant.interface import WeightSlot

logger = logging.getLogger(__name__)

ATTENTION_NAME = "quire_paged"
CALL = "quire_call"
"""Keyword argument that carries the step through the model."""
_HARMLESS_OPTIONS = {
    "scaling", "sliding_window", "softcap", "dropout", "is_causal", "position_ids", "cache_position", "use_cache",
    "output_attentions", "output_hidden_states", "return_dict", "position_embeddings", "layer_idx",
}  # fmt: skip
"""Options of an attention call that are read here, or that change nothing in a causal step."""


class AttentionCall(Protocol):
    """What travels to the attention function: a step (`PagedCall`) or the probe (`Probe`)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Attention of one layer: q [T, H, D], k and v [T, K, D] → [T, H, D]."""


def paged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function transformers calls: [1, H, T, D] in, [1, T, H, D] out."""
    call: AttentionCall | None = options.pop(CALL, None)
    layer = getattr(module, "layer_idx", None)
    if call is None or not isinstance(layer, int):
        name = type(module).__name__
        raise UnsupportedModelError(f"{name} does not hand its arguments or its layer number to attention")
    is_causal = options.get("is_causal", getattr(module, "is_causal", None))
    options |= {"attention_mask": attention_mask, "is_causal": is_causal}
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))  # [T, H or K, D]
    return call.attend(layer, q, k, v, **options).unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class PagedCall:
    """One step."""

    backend: AttentionBackend
    specs: Sequence[AttentionSpec]
    kv: Sequence[Tensor]
    plan: AttentionPlan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See `AttentionCall.attend`; the probe has checked the options, which do not change between steps."""
        parts = (states.contiguous() for states in (q, k, v))
        return self.backend.run(*parts, kv=self.kv[layer], spec=self.specs[layer], plan=self.plan)


class Probe:
    """Records the structure of each layer's attention and refuses what paged attention cannot do."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.specs: dict[int, AttentionSpec] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See `AttentionCall.attend`; returns q itself."""
        unknown = [key for key, value in options.items() if value is not None and key not in _HARMLESS_OPTIONS]
        if unknown:
            raise self.refusal(f"its attention uses {', '.join(sorted(unknown))}")
        if options.get("is_causal") is False or options.get("dropout"):
            raise self.refusal("its attention is not causal, or drops out")
        if k.shape != v.shape or q.shape[-1] != k.shape[-1]:
            raise self.refusal(f"its heads differ in size: q {q.shape[-1]}, k {k.shape[-1]}, v {v.shape[-1]}")
        if layer in self.specs:
            raise self.refusal(f"layer {layer} attends more than once")
        scale, window = options.get("scaling"), options.get("sliding_window")
        self.specs[layer] = AttentionSpec(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            scale=float(scale) if scale is not None else q.shape[2] ** -0.5,
            window=window if window else None,
            softcap=options.get("softcap"),
        )
        return q

    def refusal(self, reason: str) -> UnsupportedModelError:
        """The error for a structure that cannot run; the caller raises it."""
        return UnsupportedModelError(f"{self.architecture} cannot run through the generic adapter: {reason}")


class GivenHidden(nn.Module):
    """Stands in for the decoder while the head runs: returns the hidden states it is given."""

    def __init__(self, make_output: Callable[..., Any]) -> None:
        super().__init__()
        self.make_output = make_output

    def forward(self, *, inputs_embeds: Tensor, **ignored: Any) -> Any:
        """inputs_embeds [1, R, E] as if they were the decoder's result."""
        return self.make_output(last_hidden_state=inputs_embeds)


@dataclass(frozen=True, slots=True)
class AdapterHead:
    """The output head as the loader sees it."""

    weight: Tensor
    is_tied: bool

    def holds(self, tensor: Tensor) -> bool:
        """Whether the matrix is what `tensor` [V, E] becomes in its dtype."""
        return torch.equal(tensor.to(self.weight.dtype), self.weight.detach().cpu())


class AdapterLM(nn.Module):
    """A transformers model with the interface of `CausalLM`."""

    weight_prefixes: tuple[tuple[str, str], ...] = (("", "model."),)

    def __init__(self, causal: Any, info: ModelInfo, context: BuildContext) -> None:
        super().__init__()
        self.context = context
        self.kv_layers: tuple[KVLayerSpec, ...] = info.kv_layers
        self._stored = dict(_stored_tensors(causal))
        patterns = getattr(causal, "_keys_to_ignore_on_load_unexpected", None) or ()
        head, embedding = causal.get_output_embeddings().weight, causal.get_input_embeddings().weight
        self.lm_head = AdapterHead(head, head is embedding)
        tied = (r"lm_head\.weight",) if self.lm_head.is_tied else ()
        self.ignored_weights = (r".*rotary_emb\.inv_freq", *tied, *(f".*(?:{pattern}).*" for pattern in patterns))
        self.body = getattr(causal, causal.base_model_prefix)
        self.specs = _probe(self.body, info, context)
        setattr(causal, causal.base_model_prefix, GivenHidden(_output_type()))
        self.head = causal

    def forward(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """See `CausalLM.forward`."""
        call = PagedCall(self.context.attention, self.specs, kv, plan)
        return _run_body(self.body, token_ids, positions, call)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `CausalLM.logits`; scaling and caps are transformers' own, applied by the model's class."""
        output = self.head(inputs_embeds=hidden.unsqueeze(0), use_cache=False)
        logits: Tensor = output.logits[0].float()
        return logits

    def weight_slots(self) -> dict[str, WeightSlot]:
        """See `CausalLM.weight_slots`."""
        slots = (slot for name, tensor in self._stored.items() for slot in _slots_of(name, tensor))
        return {slot.name: slot for slot in slots}

    def weight_alternatives(self) -> dict[str, WeightSlot]:
        """See `CausalLM.weight_alternatives`: none."""
        return {}


def build_adapter(info: ModelInfo, context: BuildContext) -> AdapterLM:
    """The unfilled adapter for a checkpoint without a native family.

    Raises:
        UnsupportedModelError: when transformers does not know the architecture or the probe refuses it.
        ConfigError: when transformers is not installed, or the model should be split.
    """
    if context.parallel.size != 1:
        raise ConfigError(f"tensor_parallel_size is {context.parallel.size}; the generic adapter runs on 1 device")
    try:
        from transformers import AttentionInterface, AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise ConfigError(f"{info.architecture} needs transformers: pip install 'quire[hf]'") from error
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    model_type = info.config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"{info.architecture}: the installed transformers has no model_type {model_type!r}")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(plain_config(info.config))
        with torch.device(context.device), SkipRandomInit():
            causal = AutoModelForCausalLM.from_config(config, dtype=context.dtype, attn_implementation=ATTENTION_NAME)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        raise UnsupportedModelError(f"{info.architecture}: transformers cannot build it: {error!r}") from error
    if type(causal).__name__ != info.architecture:
        raise UnsupportedModelError(f"{info.architecture}: transformers runs {model_type} as {type(causal).__name__}")
    logger.info(
        "%s runs through the generic adapter (transformers' model code, quire's paged attention)", info.architecture
    )
    return AdapterLM(causal.eval().requires_grad_(False), info, context)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the keys that make transformers load code, kernels or other files (SEC-5)."""
    refused = {"auto_map", "attn_implementation", "experts_implementation", "quantization_config", "trust_remote_code"}
    return {key: value for key, value in config.items() if key not in refused and not key.startswith("_")}


class SkipRandomInit(TorchFunctionMode):
    """Leaves storage unfilled where a constructor would draw random weights that the checkpoint replaces anyway."""

    _random = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self._random else func(*args, **(kwargs or {}))


def _output_type() -> Callable[..., Any]:
    from transformers.modeling_outputs import MoeModelOutputWithPast

    output: Callable[..., Any] = MoeModelOutputWithPast  # has every field that heads look at
    return output


def _run_body(body: Any, token_ids: Tensor, positions: Tensor, call: AttentionCall) -> Tensor:
    output = body(
        input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, **{CALL: call}
    )
    hidden: Tensor = output.last_hidden_state.squeeze(0)
    return hidden


def _probe(body: Any, info: ModelInfo, context: BuildContext) -> tuple[AttentionSpec, ...]:
    """What each layer asks of attention; raises UnsupportedModelError for what cannot run."""
    probe = Probe(info.architecture)
    if "position_ids" not in inspect.signature(body.forward).parameters:
        raise probe.refusal("it derives positions itself")
    zero = torch.zeros(1, dtype=torch.int64, device=context.device)
    with torch.inference_mode():
        _run_body(body, zero, zero, probe)
    if sorted(probe.specs) != list(range(len(info.kv_layers))):
        raise probe.refusal(f"{len(probe.specs)} of its {len(info.kv_layers)} layers attend, others keep other state")
    specs = tuple(probe.specs[layer] for layer in range(len(info.kv_layers)))
    if tuple(KVLayerSpec(spec.num_kv_heads, spec.head_dim) for spec in specs) != info.kv_layers:
        found = f"{specs[0].num_kv_heads} kv heads of size {specs[0].head_dim}"
        raise probe.refusal(f"it has {found}, where config.json was read as {info.kv_layers[0]}")
    if [spec.window for spec in specs] != _windows(body.config, len(specs)):
        raise probe.refusal("its sliding windows live in the attention mask, not in the attention call")
    return specs


def _windows(config: Any, num_layers: int) -> list[int | None]:
    """The window each layer should ask for, by the configuration."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return [window] * num_layers
    return [window if kind == "sliding_attention" else None for kind in kinds[:num_layers]]


def _stored_tensors(causal: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters (tied ones once) and persistent buffers, by transformers' names."""
    yield from causal.named_parameters()
    persistent = causal.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in causal.named_buffers() if name in persistent)


def _slots_of(name: str, tensor: Tensor) -> Iterator[WeightSlot]:
    """One slot, or one per expert where transformers fuses experts that checkpoints store apart."""
    target = tensor.detach()
    stem, _, last = name.rpartition(".")
    if not stem.endswith("experts") or target.ndim != 3 or last not in ("gate_up_proj", "down_proj"):
        yield WeightSlot(name=name, shape=tuple(target.shape), target=target)
        return
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
    for index, expert in enumerate(target):
        for part, rows in zip(parts, expert.chunk(len(parts)), strict=True):
            yield WeightSlot(name=f"{stem}.{index}.{part}.weight", shape=tuple(rows.shape), target=rows)
