"""A small Llama in PyTorch whose parameters bear the names of Hugging Face checkpoints.

Knows: the network and its sizes. Does not know: data, training, files other than `config.json`'s
content.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tools.tiny_model.tokenizer import CONTEXT, VOCABULARY
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a Llama network with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int = VOCABULARY
    context: int = CONTEXT
    rope_theta: float = 10000.0
    eps: float = 1e-5

    def to_hf(self, end_id: int, pad_id: int) -> dict[str, object]:
        """Returns the content of `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": end_id,
            "pad_token_id": pad_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }


# Large enough that the layers' outputs do not drown which token it is, on which copying rests.
_EMBEDDING_STD = 0.15

DEMO = ModelConfig(hidden=192, layers=5, heads=6, kv_heads=2, head_dim=32, ffn=512)
DRAFT = ModelConfig(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=160)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised input."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Causal attention with grouped key and value heads and rotary positions."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the output and the keys and values up to here."""
        rows, length, _ = x.shape
        c = self.c
        q = _rotate(self.q_proj(x).view(rows, length, c.heads, c.head_dim).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(rows, length, c.kv_heads, c.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(rows, length, c.kv_heads, c.head_dim).transpose(1, 2)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        group = c.heads // c.kv_heads
        keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(rows, length, -1)), (k, v)


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down_proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's contribution."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.eps)
        self.mlp = FeedForward(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the hidden states and this layer's keys and values."""
        attended, kept = self.self_attn(self.input_layernorm(x), cos, sin, past, mask)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Decoder(nn.Module):
    """Embeddings, layers and the final normalisation."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocabulary, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)


class TinyLlama(nn.Module):
    """The whole network; the output layer is the embedding."""

    def __init__(self, c: ModelConfig, seed: int) -> None:
        super().__init__()
        self.c = c
        self.model = Decoder(c)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Residual outputs start at zero: every layer begins as the identity.
                std = 0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else parameter.shape[1] ** -0.5
                std = _EMBEDDING_STD if "embed" in name else std
                nn.init.normal_(parameter, std=std, generator=generator)
        # Small first scores: with tied embeddings every token would else predict itself.
        nn.init.constant_(self.model.norm.weight, 0.3 / (_EMBEDDING_STD * c.hidden**0.5))

    def hidden(
        self, ids: Tensor, positions: Tensor, past: Cache | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Returns the final hidden states and the keys and values of all layers."""
        c = self.c
        frequencies = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, device=ids.device) / c.head_dim)
        angles = positions[:, None, :, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        x = self.model.embed_tokens(ids)
        cache: Cache = []
        for index, layer in enumerate(self.model.layers):
            x, kept = layer(x, cos, sin, past[index] if past else None, mask)
            cache.append(kept)
        return self.model.norm(x), cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the scores of all tokens."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def parameter_count(self) -> int:
        """Returns the number of parameters, the tied embedding once."""
        return sum(p.numel() for p in self.parameters())
