"""Renders conversations with the chat template that the model is shipped with.

Knows: the template and the Jinja environment that `transformers` gives it.
Does not know: tokens, tasks, the trainer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tools.tiny_model.corpus.types import Message, Tool

START = "<|im_start|>"
END = "<|im_end|>"
ASSISTANT_HEADER = START + "assistant\n"


@cache
def chat_template() -> str:
    """Returns the template's source."""
    return (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").strip()


def _tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _compiled() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    return environment.from_string(chat_template())


def render(messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool) -> str:
    """Returns the text of a conversation, ready to be tokenised."""
    return _compiled().render(
        messages=list(messages), tools=list(tools) or None, add_generation_prompt=add_generation_prompt
    )


def split_by_loss(text: str) -> list[tuple[str, bool]]:
    """Returns the text in pieces, each with whether the model is to learn to write it."""
    pieces: list[tuple[str, bool]] = []
    parts = text.split(ASSISTANT_HEADER)
    pieces.append((parts[0], False))
    for part in parts[1:]:
        reply, _, rest = part.partition(END)
        pieces[-1] = (pieces[-1][0] + ASSISTANT_HEADER, False)
        pieces.append((reply + END, True))
        pieces.append((rest, False))
    return [piece for piece in pieces if piece[0]]
