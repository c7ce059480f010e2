"""From what a user asks to what the engine runs: prompts to ids, limits checked, seeds drawn. Shared by both fronts."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.base.errors import ContextLengthError, InvalidRequestError
from quire.base.pooling import Pooling, PoolingParams
from quire.base.request import EngineRequest
from quire.base.sampling import ALL_LOGPROBS, SamplingParams, check_token_ids
from quire.base.thinking import FIELD as THINKING_FIELD
from quire.engine.info import EngineInfo, check_generates
from quire.text.grammar import grammar_of
from quire.text.grammar_checker import GrammarChecker
from quire.text.tokenizer import Tokenizer

MAX_LOGPROBS_BYTES = 64 * 2**20
"""Log-probabilities one request may have sent between processes at once."""
_KEPT_WORD_LISTS = 16
_LOGPROB_BYTES = 20  # one entry in a message: id, number, rank

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`."""


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What a request carries besides its prompt and sampling."""

    priority: int = 0
    """Lower runs earlier."""
    timeout: float | None = None
    """Seconds the request may take, queue included."""
    cache_salt: str | None = None
    """Only requests of equal salt share cached pages."""
    tenant: str = ""
    """Whose request it is; the `fair` policy shares tokens between tenants."""
    weight: float = 1.0
    """The tenant's share against other tenants' weights."""
    caps_length: bool = False
    """End at the model's length with reason `length` instead of refusing a prompt and max_tokens that exceed it."""
    second_segment: int | None = None
    """See `Pooling.second_segment`."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A checked request: what goes to the engine, and the prompt's text where there was one."""

    engine: EngineRequest
    prompt: str | None
    request_id: str
    """The caller's id. The engine's own is never used twice: what it still says about a request that was left must not
    reach a later one of the same name."""


class RequestPreparer:
    """Turns prompts and sampling parameters into `EngineRequest`s for one engine."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._numbers = itertools.count()
        # Every prompt of a request brings the same words.
        self._spelled = functools.lru_cache(maxsize=_KEPT_WORD_LISTS)(self._spell)

    def encode(self, prompt: Prompt) -> tuple[list[int], str | None]:
        """Token ids of a prompt and its text; raises InvalidRequestError for a prompt of no known form."""
        if isinstance(prompt, Mapping):
            known = [prompt[key] for key in ("prompt_token_ids", "prompt") if prompt.get(key) is not None]
            if not known or set(prompt) - {"prompt", "prompt_token_ids"}:
                raise InvalidRequestError(
                    f"a prompt dict holds prompt_token_ids or prompt, found {sorted(prompt)}", param="prompt"
                )
            ids, text = self.encode(known[0])
            return ids, text if text is not None else prompt.get("prompt")
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt), prompt
        return list(prompt), None

    def prepare(
        self, prompt: Prompt, params: SamplingParams | PoolingParams, *, request_id: str, options: RequestOptions
    ) -> PreparedRequest:
        """Check everything that can be wrong with a request and build it; `params` decide what it ends with.

        Raises:
            ContextLengthError: the prompt, or prompt and max_tokens, exceed the model's length.
            InvalidRequestError: anything else the request asks for that cannot be had.
        """
        pooling: Pooling | None = None
        if isinstance(params, PoolingParams):
            pooling = self._pooling(params, options)
            # The vector stands for the one token of a request that draws none; a prefix hit would hide states from it.
            params = SamplingParams(
                temperature=0.0, max_tokens=1, detokenize=False, skip_reading_prefix_cache=pooling.reads_every_token
            )
        else:
            check_generates(self._info)
        ids, text = self.encode(prompt)
        params = params.clone()
        check_token_ids("prompt", ids, self._info.vocab_rows)
        params.check_ids(self._info.vocab_rows)
        structured, params.structured_outputs = params.structured_outputs, None
        if options.cache_salt is not None and not options.cache_salt:
            raise InvalidRequestError("cache_salt must be a non-empty string", param="cache_salt")
        if not 0 < options.weight < math.inf:
            raise InvalidRequestError(f"weight must be a number above 0, found {options.weight}", param="weight")
        number = next(self._numbers)
        now = time.monotonic()
        request = EngineRequest(
            request_id=f"{request_id}/{number}",
            prompt_token_ids=ids,
            params=params,
            max_tokens=self._max_tokens(len(ids), params, caps=options.caps_length) if pooling is None else 1,
            seed=params.seed if params.seed is not None else self._seed(number),
            arrival_time=now,
            priority=options.priority,
            deadline=None if options.timeout is None else now + options.timeout,
            cache_salt=options.cache_salt,
            tenant=options.tenant,
            weight=options.weight,
            bad_words_token_ids=self.bad_words(params.bad_words),
            grammar=None if structured is None else grammar_of(structured),
            pooling=pooling,
        )
        _check_thinking_can_end(request)
        if pooling is not None:
            self._check_prompt_fits(len(ids))
        return PreparedRequest(request, text, request_id)

    def _pooling(self, params: PoolingParams, options: RequestOptions) -> Pooling:
        model = self._info.pooling
        if model is None:
            raise InvalidRequestError(
                f"the model {self._info.served_names[0]} generates text and gives no vectors; use completions or chat",
                param="model",
                code="unsupported_task",
            )
        return model.pooling(params, second_segment=options.second_segment)

    def _check_prompt_fits(self, num_prompt: int) -> None:
        """A prompt that becomes a vector may fill the model's whole length."""
        longest = self._info.max_model_len
        if num_prompt == 0:
            raise InvalidRequestError("the input is empty; at least one token is needed", param="input")
        if num_prompt > longest:
            raise ContextLengthError(
                f"the input has {num_prompt} tokens; this model's maximum context length is {longest} tokens. "
                f"Shorten the input, or let truncate_prompt_tokens do it",
                param="input",
            )

    def _max_tokens(self, num_prompt: int, params: SamplingParams, *, caps: bool) -> int:
        longest = self._info.max_model_len
        if num_prompt == 0:
            raise InvalidRequestError("the prompt is empty; at least one token is needed", param="prompt")
        if num_prompt >= longest:
            asked = "" if params.max_tokens is None else f" and {params.max_tokens} completion tokens were requested"
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens{asked}; this model's maximum context length is {longest} tokens, "
                f"at least one of them for the output. Shorten the prompt, or raise --max-model-len",
                param="prompt",
            )
        room = longest - num_prompt
        if params.max_tokens is None:
            return room
        if params.max_tokens > room and not caps:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens and {params.max_tokens} completion tokens were requested, "
                f"{num_prompt + params.max_tokens} in all; this model's maximum context length is {longest} tokens",
                param="max_tokens",
            )
        return min(params.max_tokens, room)

    def _seed(self, number: int) -> int:
        """A 64-bit seed of the engine's seed and the request's number: a rerun of the same script draws the same."""
        digest = hashlib.sha256(f"{self._info.seed}:{number}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token sequences of every bad word, at the start of a text and after a space, which tokenizers tell apart.

        The last few lists are kept, so asking in a thread beforehand makes `prepare` quick.
        """
        return [list(ids) for ids in self._spelled(tuple(words))]

    def _spell(self, words: tuple[str, ...]) -> list[tuple[int, ...]]:
        spellings = [spelling for word in words for spelling in (word.lstrip(), " " + word.lstrip())]
        encoded = (tuple(self._tokenizer.encode(spelling, add_special_tokens=False)) for spelling in spellings)
        return [ids for ids in dict.fromkeys(encoded) if ids]


def _check_thinking_can_end(request: EngineRequest) -> None:
    """Refuse bad words that could forbid a token of the end of reasoning, where that is to be written."""
    thinking = request.params.thinking
    if thinking is not None and any(word[-1] in thinking.end_token_ids for word in request.bad_words_token_ids):
        raise InvalidRequestError(
            f"bad_words holds a text that the end of reasoning is written with; {THINKING_FIELD} needs it",
            param="bad_words",
        )


def grammar_checker(info: EngineInfo) -> GrammarChecker:
    """What tries out grammars for an engine's tokenizer before the engine gets them."""
    return GrammarChecker(info.tokenizer_path, num_rows=info.vocab_rows, eos_token_ids=info.eos_token_ids)


def check_remote_logprobs(request: EngineRequest) -> None:
    """Refuse log-probabilities that are too many to send from one process to another.

    Raises:
        InvalidRequestError: naming the field and the most that can be had for this request.
    """
    for name, count in (("logprobs", request.params.n), ("prompt_logprobs", len(request.prompt_token_ids))):
        asked, most = getattr(request.params, name), MAX_LOGPROBS_BYTES // (_LOGPROB_BYTES * count) - 1
        if asked == ALL_LOGPROBS:
            raise InvalidRequestError(
                f"{name}={ALL_LOGPROBS} (the whole vocabulary) is only for engines in this process: LLM, or "
                f"AsyncEngine.start(in_process=True)",
                param=name,
            )
        if asked is not None and asked > most:
            raise InvalidRequestError(f"{name} is {asked}; at most {most} can be had for this request", param=name)
