"""quire: an engine that runs and serves large language models from pages of KV cache.

Public names load on first use, so that importing one leaf does not import the world (torch least of all).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.base.config import EngineConfig as EngineConfig
    from quire.base.outputs import CompletionOutput as CompletionOutput
    from quire.base.outputs import Logprob as Logprob
    from quire.base.outputs import RequestOutput as RequestOutput
    from quire.base.pooling import PoolingParams as PoolingParams
    from quire.base.sampling import BeamSearchParams as BeamSearchParams
    from quire.base.sampling import SamplingParams as SamplingParams
    from quire.base.structured import StructuredOutputsParams as StructuredOutputsParams
    from quire.engine.async_engine import AsyncEngine as AsyncEngine
    from quire.engine.llm import LLM as LLM

__version__ = "0.1.0"

_HOMES = {
    "LLM": "quire.engine.llm",
    "AsyncEngine": "quire.engine.async_engine",
    "EngineConfig": "quire.base.config",
    "SamplingParams": "quire.base.sampling",
    "PoolingParams": "quire.base.pooling",
    "BeamSearchParams": "quire.base.sampling",
    "StructuredOutputsParams": "quire.base.structured",
    "RequestOutput": "quire.base.outputs",
    "CompletionOutput": "quire.base.outputs",
    "Logprob": "quire.base.outputs",
    "QuireError": "quire.base.errors",
    "ConfigError": "quire.base.errors",
    "UnsupportedModelError": "quire.base.errors",
    "WeightError": "quire.base.errors",
    "InvalidRequestError": "quire.base.errors",
    "EngineDeadError": "quire.base.errors",
}
__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - the keys are names, and stand once


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
