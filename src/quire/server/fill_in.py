"""`suffix` of plain completions: prompts that ask a model for what stands between prompt and suffix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quire.base.errors import InvalidRequestError
from quire.protocol.completions import CompletionRequest
from quire.server.prompts import Prompt, check_text_fits, split_prompts
from quire.text.fill_in import FillIn

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine


def fill_in_of(engine: AsyncEngine, body: CompletionRequest) -> FillIn | None:
    """How the model is asked to fill in, where the request wants that; an empty suffix wants nothing.

    Raises:
        InvalidRequestError: the model has no marks for it, or the request asks for what has no meaning beside it.
    """
    if not body.suffix:
        return None
    for name, given in (("echo", body.echo), ("truncate_prompt_tokens", body.truncate_prompt_tokens)):
        if given:
            raise InvalidRequestError(
                f"{name} does not go with suffix: the prompt stands between marks there; send one of them", param=name
            )
    fill_in = FillIn.of(engine.tokenizer)
    if fill_in is None:
        raise InvalidRequestError(
            "suffix is not supported by this model: its vocabulary has none of the marks by which models are asked to "
            "fill in the middle (such as <|fim_prefix|>, <fim_prefix>, ▁<PRE>, [SUFFIX]); use a model that was trained "
            "for it, or leave suffix out",
            param="suffix",
            code="unsupported_value",
        )
    return fill_in


async def fill_in_prompts(engine: AsyncEngine, body: CompletionRequest, fill_in: FillIn) -> list[Prompt]:
    """The prompts of a request with a suffix, in order; raises InvalidRequestError."""
    suffix, adds_bos = body.suffix or "", body.add_special_tokens is not False
    check_text_fits(suffix, engine.info.max_model_len, param="suffix")
    prompts = []
    for prefix in split_prompts(body.prompt):
        if isinstance(prefix, str):
            check_text_fits(prefix, engine.info.max_model_len, param="prompt")
        size = len(prefix) + len(suffix)
        prompts.append(Prompt(await engine.texts.run(size, fill_in.prompt, prefix, suffix, adds_bos=adds_bos)))
    return prompts
