"""What one request multiplies: samples by prompts, and whatever every one of its prompts carries to the engine.

Each number is bounded where it is read; their products are bounded here, before any of them is queued (SEC-11).
"""

from __future__ import annotations

import msgspec

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.base.structured import StructuredOutputsParams

MAX_SAMPLES = 16_384
"""Most samples of one request: its prompts times `n`."""
MAX_CARRIED_BYTES = 64 * 2**20
"""Most that all prompts of one request carry besides themselves: a request sends its sampling with each of them."""
_ID_BYTES = 4


def check_repeats(params: SamplingParams, num_prompts: int) -> None:
    """Refuse a request whose prompts bring too much each; raises InvalidRequestError."""
    if num_prompts * params.n > MAX_SAMPLES:
        raise InvalidRequestError(
            f"{num_prompts} prompts with n={params.n} are {num_prompts * params.n} samples; at most {MAX_SAMPLES} can "
            "be had at once",
            param="n",
        )
    if num_prompts == 1:
        return
    carried = num_prompts * _carried_bytes(params)
    if carried > MAX_CARRIED_BYTES:
        raise InvalidRequestError(
            f"the request's sampling fields are {carried} bytes for {num_prompts} prompts; at most {MAX_CARRIED_BYTES} "
            "can be had. Send fewer prompts at once, or shorter lists of ids, words and schemas"
        )


def _carried_bytes(params: SamplingParams) -> int:
    """About what one prompt carries."""
    ids = (params.allowed_token_ids, params.stop_token_ids, params.logit_bias)
    texts = (*params.stop, *params.bad_words)
    structured = params.structured_outputs
    return sum(_ID_BYTES * len(one or ()) for one in ids) + sum(map(len, texts)) + _structure_bytes(structured)


def _structure_bytes(structured: StructuredOutputsParams | None) -> int:
    return 0 if structured is None else len(msgspec.json.encode(getattr(structured, structured.kind)))
