"""The asynchronous front of an engine: text in, `RequestOutput`s out, many requests at once. Never imports torch.

Runs on one event loop. Tokenizing and rendering of anything long happens in a worker thread; detokenizing happens as
the engine's messages arrive, one message per step for all requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from quire.base import errors
from quire.base.config import EngineConfig
from quire.base.errors import EngineDeadError, InvalidRequestError, OverloadedError, QuireError
from quire.base.metrics import EngineStats
from quire.base.outputs import RequestMetrics, RequestOutput, TokenOutput
from quire.base.sampling import SamplingParams
from quire.engine.client import EngineClient, ProcessClient, ThreadClient
from quire.engine.collector import RequestCollector, SampleCollector
from quire.engine.info import EngineInfo, EngineObserver
from quire.engine.messages import AbortMessage, AddMessage, StepMessage
from quire.engine.requests import Prompt, RequestOptions, RequestPreparer
from quire.text.chat import ChatTemplate
from quire.text.messages import to_template_messages
from quire.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
_INLINE_CHARACTERS = 4096
"""Shorter texts are tokenized on the loop: that takes less time than handing them to a thread."""


class _OpenRequest:
    """A request the front end waits for: what it collected and whom to wake."""

    def __init__(self, collector: RequestCollector) -> None:
        self.collector = collector
        self.news = asyncio.Event()
        self.failure: QuireError | None = None
        self.last_token_time = 0.0

    def fail(self, failure: QuireError) -> None:
        """End the request with an error, for whoever waits for it."""
        self.failure = failure
        self.news.set()


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
        self.observer: EngineObserver | None = None
        self.failure: str | None = None
        self.is_draining = False
        self.step_timeout = 300.0
        self._client = client
        self._preparer = RequestPreparer(info, tokenizer)
        self._open: dict[str, _OpenRequest] = {}
        self._last_progress = time.monotonic()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @classmethod
    async def start(
        cls,
        config: EngineConfig | None = None,
        *,
        in_process: bool = False,
        on_phase: Callable[[str], None] = logger.debug,
        log: tuple[str, str] = ("info", "text"),
    ) -> AsyncEngine:
        """Start an engine, in a process of its own unless `in_process`; returns once it drew its first token.

        Raises:
            ConfigError, UnsupportedModelError, WeightError: what made the start fail.
        """
        config = config or EngineConfig()
        client: EngineClient = ThreadClient() if in_process else ProcessClient(log_level=log[0], log_style=log[1])
        hooks = _Hooks()
        info = await client.start(config, on_step=hooks.on_step, on_death=hooks.on_death, on_phase=on_phase)
        try:
            tokenizer = await asyncio.to_thread(Tokenizer.load, info.tokenizer_path)
            template = ChatTemplate.load(info.tokenizer_path, override_path=config.model.chat_template)
        except BaseException:
            await client.close()
            raise
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
    def num_open(self) -> int:
        """Requests that are queued or running."""
        return len(self._open)

    @property
    def is_stuck(self) -> bool:
        """Whether the engine has work and took no step for `step_timeout` seconds (REL-4); an idle one is not stuck."""
        return bool(self._open) and time.monotonic() - self._last_progress > self.step_timeout

    def default_params(self, **given: Any) -> SamplingParams:
        """Sampling parameters from the model's own defaults with `given` on top; raises InvalidRequestError."""
        return self._preparer.default_params(**given)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; long texts are encoded off the event loop."""
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def render_chat(self, messages: list[dict[str, Any]], **kwargs: Any) -> tuple[str, list[str]]:
        """The prompt of a conversation under the model's chat template, and notes on what was substituted.

        Raises:
            TemplateError: no chat template, or it refuses the conversation.
        """
        template = self.chat_template
        if template is None:
            raise errors.TemplateError(
                f"the model {self.info.served_names[0]} has no chat template; use completions, or give one with "
                f"--chat-template"
            )
        rendered, notes = to_template_messages(messages, template, tools=kwargs.get("tools"))
        return await asyncio.to_thread(template.render, rendered, **kwargs), notes

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Generate for one prompt; each item is all there is so far, or with `delta` only what is new.

        `options` are the fields of `RequestOptions`. Leaving the iterator early aborts the request.

        Raises:
            InvalidRequestError, OverloadedError: before anything is queued.
            DeadlineExceededError, StepError, EngineDeadError: while generating.
        """
        outputs = await self.submit(prompt, params, request_id=request_id, delta=delta, **options)
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str,
        delta: bool = False,
        **options: Any,
    ) -> OutputStream:
        """Check and queue a request now; errors that `generate` would raise at its first item raise here."""
        self._check_accepting()
        if isinstance(prompt, str):
            prompt = {"prompt": prompt, "prompt_token_ids": await self.tokenize(prompt)}
        if request_id in self._open:
            raise InvalidRequestError(f"request id {request_id!r} is in use", param="request_id")
        prepared = self._preparer.prepare(
            prompt, params or self.default_params(), request_id=request_id, options=RequestOptions(**options)
        )
        opened = _OpenRequest(RequestCollector(prepared, self.tokenizer))
        if not self._open:
            self._last_progress = time.monotonic()
        self._open[request_id] = opened
        self._emptied.clear()
        self._client.send(AddMessage([prepared.engine]))
        return OutputStream(self, opened, delta=delta)

    async def abort(self, request_id: str) -> None:
        """End a request at any moment; its iterator ends with finish reason `abort`. Unknown ids are no error."""
        if request_id in self._open:
            self._client.send(AbortMessage([request_id]))

    async def drain(self, timeout: float) -> None:
        """Refuse new requests, give the open ones `timeout` seconds, then end the rest with an error (REL-7)."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._emptied.wait(), timeout)
        except TimeoutError:
            self._fail_all(OverloadedError("the server is shutting down"))

    async def close(self) -> None:
        """End the engine; requests that are still open end with an error."""
        self._fail_all(EngineDeadError("the engine was closed"))
        self.failure = self.failure or "closed"
        await self._client.close()

    def on_step(self, message: StepMessage) -> None:
        """Take in what one engine step brought."""
        now = time.monotonic()
        self._last_progress = now
        self.stats = message.stats
        stopped: list[tuple[str, int]] = []
        for output in message.outputs:
            opened = self._open.get(output.request_id)
            if opened is not None and self._take_in(opened, output, now):
                stopped.append((output.request_id, output.index))
        if stopped:
            self._client.send(AbortMessage(samples=stopped))

    def on_death(self, reason: str) -> None:
        """The engine is gone: end every open request and refuse new ones."""
        logger.critical("%s", reason)
        self.failure = reason
        self._fail_all(EngineDeadError("the engine stopped unexpectedly"))

    def release(self, opened: _OpenRequest) -> None:
        """Forget a request; one that had not ended is aborted."""
        collector = opened.collector
        if self._open.get(collector.request_id) is not opened:
            return
        del self._open[collector.request_id]
        if not self._open:
            self._emptied.set()
        if not collector.is_finished and self.is_alive:
            self._client.send(AbortMessage([collector.request_id]))
        unfinished = [sample for sample in collector.samples if sample.finish_reason is None]
        for sample in unfinished:
            self._observe_finish(collector, sample)

    def _check_accepting(self) -> None:
        if self.failure is not None:
            raise EngineDeadError("the engine stopped unexpectedly")
        if self.is_draining:
            raise OverloadedError("the server is shutting down", retry_after=5.0)
        limit = self.info.max_num_waiting + self.info.max_num_seqs
        if len(self._open) >= limit:
            raise OverloadedError(f"{len(self._open)} requests are open, the most allowed; try again later")

    def _take_in(self, opened: _OpenRequest, output: TokenOutput, now: float) -> bool:
        collector = opened.collector
        sample = collector.samples[output.index]
        self._observe_tokens(opened, output, now)
        was_open = sample.finish_reason is None
        ended_by_text = collector.push(output)
        if was_open and (sample.finish_reason is not None or collector.error is not None):
            self._observe_finish(collector, sample)
        if collector.is_overfull:
            self._client.send(AbortMessage([collector.request_id]))
            opened.fail(OverloadedError("the client reads too slowly; the request was ended"))
        opened.news.set()
        return ended_by_text

    def _observe_tokens(self, opened: _OpenRequest, output: TokenOutput, now: float) -> None:
        if self.observer is None or not output.token_ids:
            return
        arrival = opened.collector.prepared.engine.arrival_time
        if opened.last_token_time == 0.0:
            self.observer.first_token(now - arrival)
        else:
            self.observer.inter_token(now - opened.last_token_time, len(output.token_ids))
        opened.last_token_time = now

    def _observe_finish(self, collector: RequestCollector, sample: SampleCollector) -> None:
        if self.observer is None:
            return
        engine = collector.prepared.engine
        metrics = sample.metrics or RequestMetrics(arrival_time=engine.arrival_time)
        metrics.finished_time = metrics.finished_time or time.monotonic()
        error = collector.error
        self.observer.finished(
            metrics,
            prompt_tokens=len(engine.prompt_token_ids) if sample.index == 0 else 0,
            output_tokens=sample.num_tokens,
            reason="error" if error else sample.finish_reason or "abort",
            error_kind=error.error_kind if error else None,
        )

    def _fail_all(self, failure: QuireError) -> None:
        for opened in list(self._open.values()):
            opened.fail(failure)


class OutputStream:
    """The outputs of one queued request, in order; leaving it early aborts the request."""

    def __init__(self, engine: AsyncEngine, opened: _OpenRequest, *, delta: bool) -> None:
        self._engine = engine
        self._opened = opened
        self._delta = delta
        self._ended = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output; raises StopAsyncIteration after the last and the request's error when it failed."""
        if self._ended:
            raise StopAsyncIteration
        try:
            await self._opened.news.wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        self._opened.news.clear()
        collector = self._opened.collector
        failure = self._opened.failure or _failure_of(collector.error)
        if failure is not None:
            await self.aclose()
            raise failure
        output = collector.take(delta=self._delta)
        if output.finished:
            await self.aclose()
        return output

    async def aclose(self) -> None:
        """Stop listening; aborts the request when it has not ended."""
        if not self._ended:
            self._ended = True
            self._engine.release(self._opened)


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


def _failure_of(output: TokenOutput | None) -> QuireError | None:
    """The exception an ERROR output stands for."""
    if output is None:
        return None
    cls = getattr(errors, output.error_kind or "", errors.StepError)
    return cls(output.error or "the request failed") if issubclass(cls, QuireError) else errors.StepError(output.error)
