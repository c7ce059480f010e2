"""A request as it would reach the engine, for clients and routers that want to see it; nothing is queued or charged.

The shape is that of vLLM's `/render` routes, with the prompt's text beside its ids.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from quire.base.sampling import SamplingParams
from quire.protocol.common import SamplingFields
from quire.protocol.tokens import RenderedRequest
from quire.server.incoming import Incoming
from quire.server.repeats import check_repeats

if TYPE_CHECKING:
    from quire.server.generation import Generation
    from quire.server.prompts import Prompt

T = TypeVar("T", bound=SamplingFields)


async def render_requests(
    incoming: Incoming[T], generation: Generation, prompts: Sequence[Prompt], params: SamplingParams
) -> list[RenderedRequest]:
    """One for each prompt of a request; raises what submitting them would."""
    check_repeats(params, len(prompts))
    return [await _rendered(incoming, f"{generation.id}-{i}", prompt, params) for i, prompt in enumerate(prompts)]


async def _rendered(incoming: Incoming[T], request_id: str, prompt: Prompt, params: SamplingParams) -> RenderedRequest:
    engine, body = incoming.engine, incoming.body
    priority = incoming.call.tenant.effective_priority(body.priority)
    checked = await engine.prepare(
        prompt.token_ids, params, request_id=request_id, priority=priority, cache_salt=body.cache_salt
    )
    text = prompt.text
    if text is None:
        decode = functools.partial(engine.tokenizer.decode, skip_special_tokens=False)
        text = await engine.texts.run(len(prompt.token_ids), decode, prompt.token_ids)
    return RenderedRequest(
        request_id=request_id,
        token_ids=prompt.token_ids,
        prompt=text,
        sampling_params=dataclasses.asdict(params) | {"max_tokens": checked.engine.max_tokens},
        model=incoming.call.model,
        stream=bool(body.stream),
        stream_options=body.stream_options,
        cache_salt=body.cache_salt,
        priority=priority,
    )
