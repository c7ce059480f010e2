"""Answer a file of requests in OpenAI's batch format, with an engine of our own or with a server (--url).

Requests to /v1/chat/completions and /v1/completions pass through the very routes of the server, so parameters, errors
and answers are the same. The output is written as answers come. Stopped at any moment, the same command goes on where
it was: requests that have a result are skipped. The exit status is 0 when every request succeeded, 1 when some failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from quire.base.config import API_KEY_VARIABLE
from quire.base.errors import ConfigError, EngineDeadError, OverloadedError
from quire.base.log import configure_logging
from quire.cli.batch_files import ResultFile, check_ids, read_requests
from quire.cli.flags import add_engine_flags, read_options, refuse_engine_flags
from quire.protocol.batches import BatchRequest, failure_of, result_of

MAX_ATTEMPTS = 5
MAX_WAIT_SECONDS = 30.0
_BUSY = (429, 503)
_GO_ON = "run the same command again to go on where it stopped"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire run-batch`."""
    parser.add_argument("-i", "--input", required=True, type=Path, metavar="FILE", help="Requests, one JSON per line.")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="Results; continued if there.")
    parser.add_argument("--url", help="Send to this OpenAI-style server instead of an engine of our own.")
    parser.add_argument("--concurrency", type=int, default=64, metavar="N", help="Most requests open. Default: 64.")
    parser.add_argument(
        "--priority", type=int, metavar="N", help="Priority for requests that give none; 10 lets interactive ones pass."
    )
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answer every request that has no result yet."""
    configure_logging("warning")
    if args.concurrency < 1:
        raise ConfigError(f"--concurrency is {args.concurrency}; it must be at least 1")
    if args.input.resolve() == args.output.resolve():
        raise ConfigError(f"input and output are the same file, {args.input}")
    if args.url is not None:
        refuse_engine_flags(args)
    total = check_ids(args.input)
    with ResultFile(args.output) as results:
        progress = Progress(results, total)
        left = (request for request in read_requests(args.input) if request.key not in results.answered)
        if first := next(left, None):
            asyncio.run(_answer_all(args, itertools.chain([first], left), progress))
        progress.close()
    return 1 if progress.num_failed else 0


class Progress:
    """Where results go: into the file, and onto the bar."""

    def __init__(self, results: ResultFile, total: int) -> None:
        self.num_failed = results.num_failed
        self._results = results
        self._skipped = len(results.answered)
        self._bar = tqdm(total=total, initial=min(self._skipped, total), unit="req", desc="batch", file=sys.stderr)

    def record(self, result: dict[str, Any]) -> None:
        """Write one result down and count it."""
        self._results.write(result)
        response = result["response"]
        self.num_failed += response is None or response["status_code"] >= 400
        self._bar.update()

    def close(self) -> None:
        """End the bar and say what became of the batch."""
        self._bar.close()
        answered = int(self._bar.n)
        print(f"{answered} answered, {self._skipped} of them before, {self.num_failed} failed", file=sys.stderr)


async def _answer_all(args: argparse.Namespace, requests: Iterator[BatchRequest], progress: Progress) -> None:
    """Send the requests in order, `concurrency` at a time; the first fault of the whole batch stops all."""
    async with _open_destination(args) as destination:

        async def work() -> None:
            for request in requests:
                progress.record(await _answer(destination, request, priority=args.priority))

        # Not a TaskGroup: that would wrap the cause, and the operator wants to read just that.
        workers = [asyncio.create_task(work()) for _ in range(args.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where requests go, and whether it can still answer any."""

    client: httpx.AsyncClient
    is_alive: Callable[[], bool]


async def _answer(destination: Destination, request: BatchRequest, *, priority: int | None) -> dict[str, Any]:
    """The result of one request, waiting and asking again while the server is busy.

    Raises:
        EngineDeadError: the server or engine is gone; the request has no result and is sent again by the next run.
        OverloadedError: the server stayed busy; likewise.
    """
    if request.problem is not None or request.body is None:
        return failure_of(request, code="invalid_request", message=request.problem or "no body")
    body = request.body if priority is None else {"priority": priority, **request.body}
    for attempt in range(MAX_ATTEMPTS):
        try:
            response = await destination.client.post(request.route, json=body)
        except httpx.HTTPError as error:
            where, why = destination.client.base_url, str(error) or type(error).__name__
            raise EngineDeadError(f"{where} cannot be reached ({why}); {_GO_ON}") from error
        if not destination.is_alive():
            raise EngineDeadError(f"the engine stopped; {_GO_ON}")
        if response.status_code not in _BUSY:
            answer = _json_of(response)
            request_id = response.headers.get("x-request-id", "")
            return result_of(request, status=response.status_code, body=answer, request_id=request_id)
        await asyncio.sleep(_wait_seconds(response, attempt))
    raise OverloadedError(f"the server was busy {MAX_ATTEMPTS} times in a row; lower --concurrency and {_GO_ON}")


def _wait_seconds(response: httpx.Response, attempt: int) -> float:
    """What Retry-After asks for, or a wait that doubles."""
    try:
        asked = float(response.headers.get("retry-after", ""))
    except ValueError:
        asked = 0.5 * 2.0**attempt
    return min(max(asked, 0.0), MAX_WAIT_SECONDS)


def _json_of(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"error": {"message": response.text[:200], "type": "server_error", "param": None, "code": None}}


@asynccontextmanager
async def _open_destination(args: argparse.Namespace) -> AsyncIterator[Destination]:
    """The server at `--url`, or the server's routes around an engine of our own."""
    limits = httpx.Limits(max_connections=args.concurrency, max_keepalive_connections=args.concurrency)
    if args.url is not None:
        base = args.url.rstrip("/").removesuffix("/v1")
        headers = _authorization(os.environ.get(API_KEY_VARIABLE))
        async with httpx.AsyncClient(base_url=base, headers=headers, limits=limits, timeout=None) as client:
            yield Destination(client, lambda: True)
        return
    from quire.engine.async_engine import AsyncEngine
    from quire.server.app import create_app

    options = read_options(args)
    server = options.server_config()
    engine = await AsyncEngine.start(options.engine_config())
    try:
        transport = httpx.ASGITransport(app=create_app(engine, server), raise_app_exceptions=False)
        headers = _authorization(server.api_key[0] if server.api_key else None)
        base = f"http://127.0.0.1{server.root_path}"
        async with httpx.AsyncClient(base_url=base, headers=headers, transport=transport, timeout=None) as client:
            yield Destination(client, lambda: engine.is_alive)
    finally:
        await engine.close()


def _authorization(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
