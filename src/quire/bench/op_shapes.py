"""The sizes of a decoder layer's operations: those of a checkpoint, read off the model built for it, or a default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quire.attention import select_backend
from quire.attention.interface import AttentionSpec
from quire.base.errors import ConfigError
from quire.layers.attention import Attention
from quire.layers.context import BuildContext
from quire.layers.mlp import GatedMLP
from quire.layers.moe import MoE
from quire.models.hub import locate_model
from quire.models.inspect import inspect_model
from quire.models.loader import build_model
from quire.quant.interface import ExpertsSpec
from quire.quant.packed import PackedLinear, PackedWeights


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """One linear layer."""

    name: str
    rows: int
    columns: int

    def __str__(self) -> str:
        """The name and the sizes, output first."""
        return f"{self.name} {self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpShapes:
    """What the operations of one decoder layer work on, and the head after the last one."""

    name: str
    hidden_size: int
    vocab_rows: int
    matrices: tuple[MatrixShape, ...]
    attention: AttentionSpec
    rotary_dim: int
    """Leading numbers of each head that are rotated; 0 where positions come in another way."""
    activation: str
    mlp_width: int
    """Numbers between the products of a gated MLP; 0 where there is none."""
    experts: ExpertsSpec | None
    experts_per_token: int


SMOLLM2_135M = OpShapes(
    name="SmolLM2-135M, and experts as large as its MLP",
    hidden_size=576,
    vocab_rows=49152,
    matrices=(
        MatrixShape("qkv_proj", 960, 576),
        MatrixShape("o_proj", 576, 576),
        MatrixShape("gate_up_proj", 3072, 576),
        MatrixShape("down_proj", 576, 1536),
    ),
    attention=AttentionSpec(num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125),
    rotary_dim=64,
    activation="silu",
    mlp_width=1536,
    experts=ExpertsSpec(num_experts=8, hidden_size=576, width=1536, activation="silu"),
    experts_per_token=2,
)
"""What is measured when no model is named."""


def shapes_of(model: str) -> OpShapes:
    """The sizes of a checkpoint's layers, from the model that quire builds for it; no weight is read.

    Raises:
        ConfigError: there is no such checkpoint, or it runs on other operations than the kernels' own.
    """
    info = inspect_model(locate_model(model, weights=False), require_weights=False)
    if info.implementation != "native":
        raise ConfigError(f"{model} runs through the adapter to transformers, whose operations are not quire's")
    context = BuildContext(
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention=select_backend("cpu"),
        max_model_len=min(info.max_position, 1024),
        scheme=PackedWeights("int4"),
    )
    built = build_model(info, context)
    assert isinstance(built, nn.Module), "every native model is a torch module"
    config: Any = built.config
    mixture, mlps = next(_all(built, MoE), None), list(_all(built, GatedMLP))
    width = mlps[0].down_proj.spec.in_features if mlps else 0
    return OpShapes(
        name=model,
        hidden_size=config.hidden_size,
        vocab_rows=info.vocab_rows,
        matrices=tuple(dict.fromkeys(_matrices(built))),
        attention=next(_all(built, Attention)).spec,
        rotary_dim=max((rope.rotary_dim for rope in config.ropes if rope is not None), default=0),
        activation=config.activation,
        mlp_width=int(width),
        experts=None if mixture is None else mixture.experts.spec,
        experts_per_token=0 if mixture is None else mixture.config.experts_per_token,
    )


def _matrices(model: nn.Module) -> Iterator[MatrixShape]:
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and not module.spec.is_exact:
            yield MatrixShape(name.rpartition(".")[2], module.spec.out_features, module.spec.in_features)


def _all(model: nn.Module, kind: type[Any]) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, kind))
