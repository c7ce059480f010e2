"""The asynchronous front of an engine: text in, `RequestOutput`s out, many requests at once. Never imports torch.

Runs on one event loop. Tokenizing and rendering of anything long happens in threads (`engine/text_front.py`);
detokenizing happens as the engine's messages arrive, one message per step for all requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from quire.base.config import EngineConfig
from quire.base.errors import DeadlineExceededError, EngineDeadError, OverloadedError, QuireError, TemplateError
from quire.base.metrics import EngineStats
from quire.base.outputs import RequestOutput
from quire.base.pooling import PoolingParams
from quire.base.sampling import SamplingParams
from quire.engine.client import EngineClient, ProcessClient, ThreadClient
from quire.engine.collector import RequestCollector
from quire.engine.info import EngineInfo
from quire.engine.messages import AddMessage, StepMessage
from quire.engine.open_requests import OpenRequests, OutputStream
from quire.engine.process import EngineProcess
from quire.engine.requests import (
    PreparedRequest,
    Prompt,
    RequestOptions,
    RequestPreparer,
    check_remote_logprobs,
    grammar_checker,
)
from quire.engine.text_front import TextFront
from quire.engine.text_pool import INLINE_CHARACTERS
from quire.models.hub import local_directory
from quire.text.chat import ChatTemplate
from quire.text.grammar_checker import GrammarChecker
from quire.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class AsyncEngine:
    """An engine for servers: `generate` as an async iterator, `abort`, drain and health. Make one with `start`."""

    def __init__(
        self,
        client: EngineClient,
        *,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        info: EngineInfo,
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.stats = EngineStats()
        self.failure: str | None = None
        self.is_draining = False
        self.step_timeout = 300.0
        self.requests = OpenRequests(client.send)
        self._client = client
        self._preparer = RequestPreparer(info, tokenizer)
        self._grammars = grammar_checker(info)
        self.texts = TextFront(tokenizer, chat_template)

    @classmethod
    async def start(
        cls,
        config: EngineConfig | None = None,
        *,
        in_process: bool = False,
        on_phase: Callable[[str], None] = logger.debug,
        log: tuple[str, str] = ("info", "text"),
        process: EngineProcess | None = None,
    ) -> AsyncEngine:
        """Start an engine, in a process of its own unless `in_process`; returns once it drew its first token.

        `process` is one that was spawned ahead for it.

        Raises:
            ConfigError, UnsupportedModelError, WeightError: what made the start fail.
        """
        config = config or EngineConfig()
        client: EngineClient = (
            ThreadClient() if in_process else ProcessClient(process, log_level=log[0], log_style=log[1])
        )
        hooks = _Hooks()
        reading = asyncio.create_task(asyncio.to_thread(_text_of_local, config))
        try:
            info = await client.start(config, on_step=hooks.on_step, on_death=hooks.on_death, on_phase=on_phase)
            text = await reading
            if text is None:
                text = await asyncio.to_thread(_load_text, info.tokenizer_path, config)
        except BaseException:
            reading.cancel()
            await client.close()
            raise
        tokenizer, template = text
        engine = cls(client, tokenizer=tokenizer, chat_template=template, info=info)
        hooks.attach(engine)
        return engine

    @property
    def is_alive(self) -> bool:
        """Whether the engine can still produce tokens."""
        return self.failure is None

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self.is_alive and not self.is_draining

    @property
    def is_stuck(self) -> bool:
        """Whether the engine has work and took no step for `step_timeout` seconds (REL-4); an idle one is not stuck."""
        return self.requests.stalled_seconds() > self.step_timeout

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; raises InvalidRequestError for one that is longer than any model reads."""
        return (await self.texts.tokenize([text], add_special_tokens=add_special_tokens))[0]

    async def render_chat(self, messages: list[dict[str, Any]], /, **kwargs: Any) -> tuple[str, list[str]]:
        """The prompt of a conversation under the model's chat template; see `TextFront.render`."""
        return await self.texts.render(messages, **kwargs)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Generate for one prompt; each item is all there is so far, or with `delta` only what is new.

        An item's text and lists are put together when they are first read (0.1 ms at 64,000 tokens), so who reads them
        all at every step of a long output is better off with deltas.
        `options` are the fields of `RequestOptions`. Leaving the iterator early aborts the request.

        Raises:
            InvalidRequestError, OverloadedError: before anything is queued.
            DeadlineExceededError, StepError, EngineDeadError: while generating.
        """
        outputs = await self.submit(prompt, sampling_params, request_id=request_id, delta=delta, **options)
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    async def submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | PoolingParams | None = None,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> OutputStream:
        """Check and queue a request now; errors that `generate` would raise at its first item raise here.

        With `PoolingParams` it ends with a vector (`RequestOutput.pooled`) instead of text.
        """
        _check_room(self)  # before the work of preparing, and again, for the queue may have filled up in the meantime
        prepared = await self.prepare(prompt, sampling_params, request_id=request_id, **options)
        _check_room(self)
        opened = self.requests.add(RequestCollector(prepared, self.tokenizer, delta=delta))
        self._client.send(AddMessage([prepared.engine]))
        return OutputStream(self.requests, opened)

    async def prepare(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | PoolingParams | None = None,
        *,
        request_id: str,
        **options: Any,
    ) -> PreparedRequest:
        """What `submit` queues, checked in the same way and raising the same; nothing is queued."""
        _check_accepting(self)
        if isinstance(prompt, str):
            prompt = {"prompt": prompt, "prompt_token_ids": await self.tokenize(prompt)}
            _check_accepting(self)  # the engine may have died in the meantime
        params = sampling_params or self.info.default_params()
        await _spell_bad_words(self.texts, self._preparer, params)
        prepared = self._preparer.prepare(prompt, params, request_id=request_id, options=RequestOptions(**options))
        if self._client.is_remote:
            check_remote_logprobs(prepared.engine)
        if prepared.engine.grammar is not None:
            await _try_grammar(self._grammars, prepared.engine.grammar, prepared.engine.deadline)
        _check_accepting(self)
        return prepared

    async def encode(
        self, prompt: Prompt, pooling_params: PoolingParams | None = None, *, request_id: str, **options: Any
    ) -> RequestOutput:
        """One prompt as a vector, in `pooled`: an embedding, or a logit per label, by what the model is.

        Takes the options of `generate` and raises what it raises.
        """
        outputs = await self.submit(prompt, pooling_params or PoolingParams(), request_id=request_id, **options)
        try:
            return await anext(outputs)
        finally:
            await outputs.aclose()

    async def abort(self, request_id: str) -> None:
        """End a request at any moment; its iterator ends with finish reason `abort`. Unknown ids are no error."""
        self.requests.abort(request_id)

    async def drain(self, timeout: float) -> None:
        """Refuse new requests, give the open ones `timeout` seconds, then end the rest with an error (REL-7)."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self.requests.emptied.wait(), timeout)
        except TimeoutError:
            self.requests.fail_all(OverloadedError("the server is shutting down"))

    async def close(self) -> None:
        """End the engine; requests that are still open end with an error."""
        self.requests.fail_all(EngineDeadError("the engine was closed"))
        self.failure = self.failure or "closed"
        self._grammars.close()
        self.texts.close()
        await self._client.close()

    def on_step(self, message: StepMessage) -> None:
        """Take in what one engine step brought."""
        self.stats = message.stats
        self.requests.take_in(message.outputs)

    def on_death(self, reason: str) -> None:
        """The engine is gone: end every open request and refuse new ones."""
        logger.critical("%s", reason)
        self.failure = reason
        self.requests.fail_all(EngineDeadError("the engine stopped unexpectedly"))


def _check_accepting(engine: AsyncEngine) -> None:
    if engine.failure is not None:
        raise EngineDeadError("the engine stopped unexpectedly")
    if engine.is_draining:
        raise OverloadedError("the server is shutting down", retry_after=5.0)


def _check_room(engine: AsyncEngine) -> None:
    """Also that it takes requests at all."""
    _check_accepting(engine)
    limit = engine.info.max_num_waiting + engine.info.max_num_seqs
    if len(engine.requests) >= limit:
        raise OverloadedError(f"{len(engine.requests)} requests are open, the most allowed; try again later")


def _text_of_local(config: EngineConfig) -> tuple[Tokenizer, ChatTemplate | None] | None:
    """The tokenizer and template of a model that lies here, so that they load beside it; None where they do not."""
    path = local_directory(config.model.tokenizer or config.model.model)
    try:
        return None if path is None else _load_text(str(path), config)
    except QuireError:
        return None  # tried again once the engine runs: what keeps that from running is the cause to report


def _load_text(path: str, config: EngineConfig) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = Tokenizer.load(path)
    template = ChatTemplate.load(path, override_path=config.model.chat_template)
    if template is not None:
        with contextlib.suppress(TemplateError):  # each request for chat will be told
            template.traits(None)  # kept, so that the event loop never waits for a rendering to ask for them
            template.traits([])
    return tokenizer, template


async def _spell_bad_words(texts: TextFront, preparer: RequestPreparer, params: SamplingParams | PoolingParams) -> None:
    """Have words that are to be avoided tokenized off the event loop where they are many; `prepare` then knows them."""
    if isinstance(params, PoolingParams) or not params.bad_words:
        return
    words = [word for word in params.bad_words if isinstance(word, str)]  # `prepare` refuses anything else
    size = sum(map(len, words))
    if size > INLINE_CHARACTERS:
        await texts.run(size, preparer.bad_words, words)


async def _try_grammar(grammars: GrammarChecker, grammar: str, deadline: float | None) -> None:
    """Wait for the verdict on a grammar, for as long as its request has time.

    Raises:
        DeadlineExceededError: it has none left. InvalidRequestError, OverloadedError: as `GrammarChecker.submit`.
    """
    verdict = asyncio.wrap_future(grammars.submit(grammar))
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
            await verdict
    except TimeoutError:
        raise DeadlineExceededError("the request's deadline passed while its grammar was compiled") from None


class _Hooks:
    """Holds the client's callbacks until the engine exists; a death before that is kept and delivered."""

    def __init__(self) -> None:
        self._engine: AsyncEngine | None = None
        self._death: str | None = None

    def attach(self, engine: AsyncEngine) -> None:
        """Deliver to this engine from now on."""
        self._engine = engine
        if self._death is not None:
            engine.on_death(self._death)

    def on_step(self, message: StepMessage) -> None:
        """Pass a step on; before the engine exists there are no requests a step could be for."""
        if self._engine is not None:
            self._engine.on_step(message)

    def on_death(self, reason: str) -> None:
        """Pass the death on, or keep it."""
        self._death = reason
        if self._engine is not None:
            self._engine.on_death(reason)
