"""Text in, token ids out, off the event loop: the tokenizer and the chat template of one front end, and their threads.

Knows which work is long enough to be handed to a thread, and to which (`engine/text_pool.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from quire.base.errors import TemplateError
from quire.engine.text_pool import INLINE_CHARACTERS, Lane, TextPool, check_length, grouped, lane_for
from quire.text.chat import ChatTemplate
from quire.text.messages import to_template_messages
from quire.text.tokenizer import Tokenizer

T = TypeVar("T")


class TextFront:
    """What a front end does with text before the engine sees it. One event loop owns it."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        # A template's sandbox serves one rendering at a time, and a short one must not wait for a long one.
        self._long_template = None if template is None else template.copy()
        self._pool = TextPool()

    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text; all but little is encoded in a thread.

        Raises:
            InvalidRequestError: a text is longer than any model reads, or no Unicode. OverloadedError: too many wait.
        """
        check_length(max(map(len, texts), default=0))
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return self._encode(texts, add_special_tokens)
        ids: list[list[int]] = []
        for group in grouped(texts):
            ids += await self.run(sum(map(len, group)), self._encode, group, add_special_tokens)
        return ids

    async def render(
        self, messages: list[dict[str, Any]], /, *, size: int = 0, chat_template: str | None = None, **kwargs: Any
    ) -> tuple[str, list[str]]:
        """The prompt of a conversation under the model's chat template, and notes on what was substituted.

        `size` is about how many characters the conversation has. `chat_template` is the text of a template to use
        instead; as it may be anybody's it waits among the long texts (SEC-6, SEC-21).

        Raises:
            TemplateError: no chat template, or it refuses the conversation. OverloadedError: too many wait.
        """
        lane, template = lane_for(size), self._template
        if chat_template is not None:
            lane, template = Lane.LONG, ChatTemplate({"default": chat_template}, self._tokenizer.special_tokens)
        elif lane is Lane.LONG:
            template = self._long_template
        if template is None:
            raise TemplateError("the model has no chat template; use completions, or give one with --chat-template")
        return await self._pool.run(lane, size, _render, template, messages, **kwargs)

    async def run(self, size: int, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """What a function makes of `size` characters, called in a thread where others like it wait their turn.

        Raises:
            OverloadedError: too many wait. Otherwise what the function raises.
        """
        return await self._pool.run(lane_for(size), size, function, *args, **kwargs)

    async def read_body(self, read: Callable[[bytes], T], body: bytes) -> T:
        """What a function makes of a request's body, called in a thread that does nothing else."""
        return await self._pool.run(Lane.BODY, len(body), read, body)

    def close(self) -> None:
        """Take no more work; what has not begun is cancelled."""
        self._pool.close()

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]


def _render(template: ChatTemplate, messages: list[dict[str, Any]], /, **kwargs: Any) -> tuple[str, list[str]]:
    rendered, notes = to_template_messages(messages, template, tools=kwargs.get("tools"))
    return template.render(rendered, **kwargs), notes
