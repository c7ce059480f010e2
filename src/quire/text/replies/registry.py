"""The names of call formats and reasoning formats.

Which of them a chat template stands for is read by `text/template_traits.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from quire.base.errors import ConfigError
from quire.text.replies.call_format import CallFormat
from quire.text.replies.deepseek import DeepSeekFormat
from quire.text.replies.hermes import HermesFormat
from quire.text.replies.llama3 import Llama3JsonFormat
from quire.text.replies.mistral import MistralFormat
from quire.text.replies.pythonic import PythonicFormat
from quire.text.replies.qwen3_coder import Qwen3CoderFormat
from quire.text.replies.reasoning import MISTRAL, THINK, ReasoningFormat

T = TypeVar("T")

CALL_FORMATS: Mapping[str, CallFormat | None] = MappingProxyType(
    {
        "hermes": HermesFormat(),
        "llama3_json": Llama3JsonFormat(),
        "mistral": MistralFormat(names_first=False),
        "mistral_v11": MistralFormat(names_first=True),
        "pythonic": PythonicFormat(),
        "deepseek_v3": DeepSeekFormat(has_fence=True),
        "deepseek_v31": DeepSeekFormat(has_fence=False),
        "qwen3_coder": Qwen3CoderFormat(),
        "none": None,
    }
)
REASONING_FORMATS: Mapping[str, ReasoningFormat | None] = MappingProxyType(
    {"think": THINK, "deepseek_r1": THINK, "qwen3": THINK, "mistral": MISTRAL, "none": None}
)
"""`deepseek_r1` and `qwen3` are the names that users of vLLM know for `think`."""


def call_format(name: str) -> CallFormat | None:
    """The call format with this name; None for `none`, which finds no calls.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    return _named(CALL_FORMATS, name, "tool-call format")


def reasoning_format(name: str) -> ReasoningFormat | None:
    """The reasoning format with this name; None for `none`.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    return _named(REASONING_FORMATS, name, "reasoning format")


def _named(formats: Mapping[str, T], name: str, kind: str) -> T:
    if name not in formats:
        raise ConfigError(f"{name!r} is no {kind}; known are {', '.join(formats)}")
    return formats[name]
