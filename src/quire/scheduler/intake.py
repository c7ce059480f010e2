"""From an `EngineRequest` to the samples the scheduler runs: refusal, expansion into `n` requests, seeds."""

from __future__ import annotations

import hashlib

from quire.base.constraint import TokenConstraint
from quire.base.outputs import FinishReason, RequestMetrics, TokenOutput
from quire.base.paging import pages_for
from quire.base.request import EngineRequest, Request


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a request: the request's own for the first, else 63 bits made from both."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_samples(
    request: EngineRequest, eos_token_ids: frozenset[int], constraint: TokenConstraint | None = None
) -> list[Request]:
    """The request's `n` samples, each with its own token list, seed and constraint."""
    params = request.params
    eos = frozenset() if params.ignore_eos else eos_token_ids
    return [
        Request(
            request_id=request.request_id,
            index=index,
            params=params,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            max_tokens=request.max_tokens,
            seed=sample_seed(request.seed, index),
            arrival_time=request.arrival_time,
            priority=request.priority,
            deadline=request.deadline,
            cache_salt=request.cache_salt,
            tenant=request.tenant,
            weight=request.weight,
            bad_words_token_ids=request.bad_words_token_ids,
            stop_token_ids=frozenset(params.stop_token_ids),
            eos_token_ids=eos,
            constraint=None if constraint is None else constraint.fork(),
            pooling=request.pooling,
            metrics=RequestMetrics(arrival_time=request.arrival_time),
        )
        for index in range(params.n)
    ]


def refusal(request: EngineRequest, *, max_model_len: int, num_pages: int, page_size: int) -> tuple[str, str] | None:
    """Why the request can never run, as (kind of error, message); None when it can.

    The front end refuses these first; here they would otherwise wait for ever at the head of the queue.
    """
    num_prompt, num_total = len(request.prompt_token_ids), len(request.prompt_token_ids) + request.max_tokens
    if num_prompt == 0 or request.max_tokens < 1:
        found = f"{num_prompt} prompt tokens and max_tokens {request.max_tokens}"
        return "InvalidRequestError", f"a request needs at least one prompt token and one output token, found {found}"
    if request.cache_salt == "":
        return "InvalidRequestError", "cache_salt is empty; give a non-empty string or leave it out"
    if not 0 < request.weight < float("inf"):
        return "InvalidRequestError", f"weight must be a number above 0, found {request.weight}"
    asked = f"{num_prompt} prompt tokens and {request.max_tokens} output tokens"
    # A vector takes no place behind the prompt.
    if (num_total if request.pooling is None else num_prompt) > max_model_len:
        return "ContextLengthError", f"{asked} exceed the {max_model_len} tokens allowed (setting: max_model_len)"
    # The last output token is never computed, so it needs no place.
    if pages_for(num_total - 1, page_size) > num_pages:
        room = f"{num_pages * page_size} tokens the KV cache holds (setting: kv_cache_memory_bytes)"
        return "ContextLengthError", f"{asked} exceed the {room}"
    return None


def refused(request: EngineRequest, kind: str, message: str) -> list[TokenOutput]:
    """The outputs, one per sample, that tell of a refusal."""
    return [
        TokenOutput(
            request_id=request.request_id,
            index=index,
            token_ids=[],
            finish_reason=FinishReason.ERROR,
            error=message,
            error_kind=kind,
            metrics=RequestMetrics(arrival_time=request.arrival_time),
        )
        for index in range(request.params.n)
    ]
