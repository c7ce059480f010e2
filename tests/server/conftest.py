"""A scripted engine with the surface of AsyncEngine, and servers around it: in-process, and on a real socket."""

from __future__ import annotations

import asyncio
import codecs
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.base.errors import ContextLengthError, EngineDeadError, InvalidRequestError, OverloadedError
from quire.base.metrics import EngineStats
from quire.base.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from quire.base.request import BACKGROUND_PRIORITY
from quire.base.sampling import SamplingParams, check_token_ids
from quire.engine.info import EngineInfo
from quire.engine.text_front import TextFront
from quire.server.app import create_admin_app, create_app
from quire.server.serve import ServerLife, bind, bind_admin

BOS, EOS = 256, 257
VOCAB_ROWS = 260
MODEL = "quire-demo"

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)  # for the modules of samples beside the tests


class FakeTokenizer:
    """One token per byte, and two special tokens."""

    byte_plan = object()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        kept = (self.token_bytes(i) for i in ids if not (skip_special_tokens and self.is_special(i)))
        return b"".join(kept).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else {BOS: b"<s>", EOS: b"</s>"}.get(token_id, b"")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, spelling: str) -> int | None:
        return None

    def special_id(self, text: str) -> int | None:
        return {"<s>": BOS, "</s>": EOS}.get(text)

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256


class _FakeSample:
    """Replays one sample's script token by token, holding text back as a real detokenizer does."""

    def __init__(self, index: int, script: list[int], params: SamplingParams, room: int) -> None:
        self.index = index
        self.script = script
        self.params = params
        self.limit = min(params.max_tokens or room, room)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.count = 0
        self.finish: str | None = None
        self.stop_reason: str | int | None = None

    def step(self, tokenizer: FakeTokenizer) -> CompletionOutput:
        token_id = self.script[self.count] if self.count < len(self.script) else EOS
        self.count += 1
        self.held += "" if token_id == EOS else self.decoder.decode(tokenizer.token_bytes(token_id))
        text = self._release(is_last=token_id == EOS or self.count >= self.limit)
        if self.finish is None and token_id == EOS:
            self.finish = "stop"
        elif self.finish is None and self.count >= self.limit:
            self.finish = "length"
        wanted = self.params.logprobs
        entries = None if wanted is None else [fake_logprobs(token_id, wanted, tokenizer)]
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=[token_id],
            logprobs=entries,
            finish_reason=self.finish,
            stop_reason=self.stop_reason,
        )

    def _release(self, *, is_last: bool) -> str:
        for stop in self.params.stop:
            if stop in self.held:
                self.finish, self.stop_reason = "stop", stop
                return self.held[: self.held.index(stop)]
        keep = 0
        if not is_last:
            lengths = range(1, max((len(s) for s in self.params.stop), default=1))
            keep = max((k for k in lengths for s in self.params.stop if self.held.endswith(s[:k])), default=0)
        text = self.held[: len(self.held) - keep]
        self.held = self.held[len(self.held) - keep :]
        return text


def fake_logprobs(token_id: int, top: int, tokenizer: FakeTokenizer) -> dict[int, Logprob]:
    """The taken token at rank 2 with log-probability -inf (as under a mask), rivals around it."""
    entry = {token_id: Logprob(float("-inf"), 2, tokenizer.token_text(token_id))}
    rivals = [i for i in range(97, 97 + top + 1) if i != token_id]
    for rank, other in zip([1, *range(3, top + 2)], rivals, strict=False):
        entry[other] = Logprob(-0.5 * rank, rank, tokenizer.token_text(other))
    return entry


class FakeStream:
    """What `FakeEngine.submit` returns."""

    def __init__(
        self, outputs: AsyncIterator[RequestOutput], close: Callable[[], None], samples: list[_FakeSample]
    ) -> None:
        self._outputs = outputs
        self._close = close
        self._samples = samples

    def end_sample(self, index: int) -> None:
        self._samples[index].finish = "abort"

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> RequestOutput:
        return await self._outputs.__anext__()

    async def aclose(self) -> None:
        self._close()


class _FakeRequests:
    """What the server reads of an engine's open requests."""

    def __init__(self, engine: FakeEngine) -> None:
        self.observer: Any = None
        self._engine = engine

    def __len__(self) -> int:
        return len(self._engine.open)

    @property
    def num_foreground(self) -> int:
        priorities = {request.request_id: request.priority for request in self._engine.submitted}
        return sum(priorities.get(name, 0) < BACKGROUND_PRIORITY for name in self._engine.open)


class FakeEngine:
    """Answers every prompt with `reply`, one byte per step; tests set what goes wrong and when."""

    def __init__(
        self, *, reply: str = "Hello, wörld! 😀", names: tuple[str, ...] = (MODEL, "org/alias"), max_len: int = 4096
    ) -> None:
        self.info = EngineInfo(
            model_path="/srv/models/quire-demo",
            tokenizer_path="/srv/models/quire-demo",
            served_names=names,
            max_model_len=max_len,
            vocab_rows=VOCAB_ROWS,
            created=1_700_000_000,
            resolved={"page_size": 16, "model": "/srv/models/quire-demo"},
            ledger=("weights  1.0 MB from /srv/models/quire-demo",),
        )
        self.tokenizer = FakeTokenizer()
        self.traits = SimpleNamespace(
            tool_format="hermes",
            reasoning_format="none",
            thinking_switch=None,
            reads_effort=False,
            reasoning_end="\n</think>\n\n",
        )
        self.chat_template: Any = SimpleNamespace(name="fake", traits=lambda tools: self.traits)
        self.texts = TextFront(self.tokenizer, None)
        self.stats = EngineStats(step=7, num_pages=100, num_used_pages=25, generation_tokens=42)
        self.requests = _FakeRequests(self)
        self.failure: str | None = None
        self.is_draining = False
        self.is_stuck = False
        self.reply = reply
        self.delay = 0.0
        self.fail_after: tuple[int, Exception] | None = None
        self.gate: Callable[[int], Any] | None = None
        self.submitted: list[SimpleNamespace] = []
        self.open: set[str] = set()
        self.aborted: list[str] = []
        self.rendered: list[dict[str, Any]] = []
        self.closed = False

    is_alive = property(lambda self: self.failure is None)
    is_ready = property(lambda self: self.is_alive and not self.is_draining)

    async def render_chat(self, messages: list[dict[str, Any]], **kwargs: Any) -> tuple[str, list[str]]:
        self.rendered.append({"messages": messages, **kwargs})
        text = "".join(f"<{m['role']}>{m['content']}\n" for m in messages)
        return text + "<assistant>" * bool(kwargs.get("add_generation_prompt")), []

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return (await self.texts.tokenize([text], add_special_tokens=add_special_tokens))[0]

    async def prepare(self, prompt: Any, params: SamplingParams, *, request_id: str, **options: Any) -> SimpleNamespace:
        room = self._checked_room(prompt, params)
        return SimpleNamespace(engine=SimpleNamespace(max_tokens=min(params.max_tokens or room, room)))

    def _checked_room(self, prompt: Any, params: SamplingParams) -> int:
        """Tokens that an answer may have; raises what a real engine would."""
        if self.failure is not None:
            raise EngineDeadError("the engine stopped unexpectedly")
        if self.is_draining:
            raise OverloadedError("the server is shutting down", retry_after=5.0)
        params.check_ids(VOCAB_ROWS)
        check_token_ids("prompt", prompt, VOCAB_ROWS)
        room = self.info.max_model_len - len(prompt)
        if not prompt:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if room < 1 or (params.max_tokens or 1) > room:
            raise ContextLengthError(
                f"{len(prompt)} prompt tokens, {params.max_tokens} asked, {self.info.max_model_len} allowed",
                param="prompt" if room < 1 else "max_tokens",
            )
        return room

    async def submit(
        self, prompt: Any, params: SamplingParams, *, request_id: str, delta: bool = False, **options: Any
    ) -> FakeStream:
        assert delta, "the server reads deltas"
        room = self._checked_room(prompt, params)
        self.submitted.append(SimpleNamespace(prompt=prompt, params=params, request_id=request_id, **options))
        self.open.add(request_id)

        def close() -> None:
            if request_id in self.open:
                self.open.discard(request_id)
                self.aborted.append(request_id)

        samples = [_FakeSample(i, list(self.reply.encode()), params, room) for i in range(params.n)]
        return FakeStream(self._outputs(prompt, params, request_id, samples), close, samples)

    async def _outputs(
        self, prompt: list[int], params: SamplingParams, request_id: str, samples: list[_FakeSample]
    ) -> AsyncIterator[RequestOutput]:
        arrival = time.monotonic()
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = [None, *(fake_logprobs(t, params.prompt_logprobs, self.tokenizer) for t in prompt[1:])]
        step = 0
        while any(sample.finish is None for sample in samples):
            if self.fail_after is not None and step >= self.fail_after[0]:
                self.open.discard(request_id)
                raise self.fail_after[1]
            if self.gate is not None:
                await self.gate(step)
            await asyncio.sleep(self.delay)
            outputs = [sample.step(self.tokenizer) for sample in samples if sample.finish is None]
            step += 1
            finished = all(sample.finish is not None for sample in samples)
            now = time.monotonic()
            metrics = RequestMetrics(
                arrival_time=arrival, first_scheduled_time=arrival, last_token_time=now, finished_time=now
            )
            if finished:
                self.open.discard(request_id)
            if self.requests.observer is not None:
                self._observe(step, now - arrival, metrics, finished, prompt, samples)
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                outputs=outputs,
                finished=finished,
                prompt_logprobs=prompt_logprobs,
                num_cached_tokens=len(prompt) // 2,
                metrics=metrics if finished else None,
            )
            prompt_logprobs = None

    def _observe(
        self,
        step: int,
        seconds: float,
        metrics: RequestMetrics,
        finished: bool,
        prompt: list[int],
        samples: list[_FakeSample],
    ) -> None:
        if step == 1:
            self.requests.observer.first_token(seconds)
        else:
            self.requests.observer.inter_token(0.001, 1)
        if finished:
            self.requests.observer.finished(
                metrics,
                prompt_tokens=len(prompt),
                output_tokens=samples[0].count,
                reason=samples[0].finish,
                error_kind=None,
            )

    async def abort(self, request_id: str) -> None:
        self.open.discard(request_id)

    async def drain(self, timeout: float) -> None:
        self.is_draining = True
        end = time.monotonic() + timeout
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self.open:
            self.fail_after = (0, OverloadedError("the server is shutting down"))

    async def close(self) -> None:
        self.closed = True
        self.texts.close()
        self.fail_after = (0, EngineDeadError("the engine was closed"))


class LiveServer:
    """A server on a real socket, its loop in a thread of its own."""

    def __init__(self, engine: FakeEngine, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.status: int | None = None
        self.url = ""
        self.app = create_app(None, config)
        self._listener = bind(config)
        self._admin_listener = bind_admin(config, self._listener)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: ServerLife | None = None
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        assert self._ready.wait(10)

    def _main(self) -> None:
        self.status = asyncio.run(self._run())

    async def _run(self) -> int:
        async def start() -> Any:
            return self.engine

        self._loop = asyncio.get_running_loop()
        self._life = ServerLife(self.app, self._listener, self.config, admin_listener=self._admin_listener)
        return await self._life.run(start, self._on_ready)

    def _on_ready(self, url: str) -> None:
        self.url = url
        self._ready.set()

    @property
    def admin_url(self) -> str:
        """Where the administrator's routes are."""
        assert self._life is not None and self._life.admin_url is not None
        return self._life.admin_url

    def signal(self) -> None:
        """What SIGTERM does."""
        assert self._loop is not None and self._life is not None
        self._loop.call_soon_threadsafe(self._life.request_stop)

    def join(self, timeout: float = 15) -> int | None:
        """The exit status, once the server ended."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the server did not end"
        return self.status

    def stop(self) -> None:
        if self._thread.is_alive():
            self.signal()
            self.signal()
            self.join()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def make_http() -> Callable[..., httpx.AsyncClient]:
    """A client of an in-process app: `make_http(engine, api_key=("k",))`. Host is localhost unless said otherwise."""

    def make(
        engine: Any, *, host: str = "localhost", headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.AsyncClient:
        app = create_app(engine, ServerConfig(**options))
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)
        client.app = app  # type: ignore[attr-defined]
        return client

    return make


@pytest.fixture
def make_admin() -> Callable[..., httpx.AsyncClient]:
    """A client of the administrator's app of the server that a client of `make_http` talks to."""

    def make(http: httpx.AsyncClient) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=create_admin_app(http.app), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    return make


@pytest.fixture
def http(engine: FakeEngine, make_http: Callable[..., httpx.AsyncClient]) -> httpx.AsyncClient:
    return make_http(engine)


@pytest.fixture
def make_live() -> Iterator[Callable[..., LiveServer]]:
    """Servers on real sockets: `make_live(engine, shutdown_timeout=1.0)`; stopped at the end of the test."""
    servers: list[LiveServer] = []

    def make(engine: FakeEngine, **options: Any) -> LiveServer:
        servers.append(LiveServer(engine, ServerConfig(port=0, **options)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def live(engine: FakeEngine, make_live: Callable[..., LiveServer]) -> LiveServer:
    return make_live(engine)


@pytest.fixture
def sdk_target(live: LiveServer) -> SimpleNamespace:
    """Where the SDK tests go: `url` (with /v1), `model`, `api_key`. Another suite may point it at another server."""
    return SimpleNamespace(url=f"{live.url}/v1", model=MODEL, api_key="unused")


def sse_events(text: str) -> list[str]:
    """The data of every event, comments left out; fails on anything that is no SSE."""
    events = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        assert block.startswith("data: ") and "\n" not in block, block
        events.append(block[len("data: ") :])
    return events


@pytest.fixture
def parse_sse() -> Callable[[str], list[str]]:
    return sse_events
