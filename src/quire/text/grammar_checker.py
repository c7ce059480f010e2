"""Finds out whether a grammar can be compiled, where it can do no harm: in a process with limits of time and memory.

A regular expression may take for ever to compile, and a grammar may crash the library that reads it; neither is to be
found out beside the model, nor on the event loop (SEC-16, SEC-18). Verdicts are kept, so a grammar costs this once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from quire.base.errors import InvalidRequestError, OverloadedError
from quire.base.structured import FIELD
from quire.text.grammar_process import CHECK_SECONDS, LENGTH

START_SECONDS = 60
"""A process first loads the tokenizer, which takes a second or two on a busy machine."""

MAX_PROCESSES = 2
"""Grammars tried at once: one that takes its five seconds does not hold up the others."""

MAX_PENDING = 64
"""Grammars that may wait to be tried; one more is refused as overload."""

MAX_KEPT_BYTES = 4 * 2**20
"""Text of the grammars whose verdicts are kept."""


class GrammarChecker:
    """Verdicts on grammars for one tokenizer. Safe to use from several threads; nothing starts before the first use."""

    def __init__(self, tokenizer_path: str, *, num_rows: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = (tokenizer_path, str(num_rows), ",".join(map(str, eos_token_ids)))
        self._threads: ThreadPoolExecutor | None = None
        self._processes: list[_Process] = []
        self._own = threading.local()
        self._lock = threading.Lock()
        self._num_pending = 0
        self._verdicts: OrderedDict[str, str] = OrderedDict()
        self._kept_bytes = 0

    def check(self, grammar: str) -> None:
        """Return when the grammar can be compiled within bounds; blocks, and raises what `submit`'s future does."""
        self.submit(grammar).result()

    def submit(self, grammar: str) -> Future[None]:
        """A future that ends well when the grammar can be compiled within bounds.

        It fails with InvalidRequestError when the grammar cannot, and the message says why.

        Raises:
            OverloadedError: too many others wait to be tried; from the future, where the process cannot be started.
        """
        with self._lock:
            verdict = self._verdicts.get(grammar)
            if verdict is not None:
                self._verdicts.move_to_end(grammar)
                return _settled(verdict)
            if self._num_pending >= MAX_PENDING:
                raise OverloadedError(f"{MAX_PENDING} new grammars are being compiled; try again later", retry_after=5)
            self._num_pending += 1
            self._threads = self._threads or ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="quire-check")
            future = self._threads.submit(self._check, grammar)
        future.add_done_callback(self._note_done)  # also where it was cancelled before its turn
        return future

    def close(self) -> None:
        """End the processes; what is still being tried fails."""
        with self._lock:
            threads, self._threads = self._threads, None
            processes, self._processes = self._processes, []
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def _check(self, grammar: str) -> None:
        _raise(self._try(grammar))

    def _note_done(self, _: Future[None]) -> None:
        with self._lock:
            self._num_pending -= 1

    def _try(self, grammar: str) -> str:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _Process(self._arguments)
            with self._lock:
                self._processes.append(process)
        try:
            process.ensure_started()
        except _LostError:  # says nothing of the grammar, so it is no verdict
            process.kill()
            raise OverloadedError(
                "the process that compiles grammars did not start; try again", retry_after=5
            ) from None
        try:
            verdict = process.check(grammar)
        except _LostError as error:
            process.kill()
            verdict = f"the grammar cannot be compiled: {error}"
        self._keep(grammar, verdict)
        return verdict

    def _keep(self, grammar: str, verdict: str) -> None:
        with self._lock:
            if grammar not in self._verdicts:
                self._kept_bytes += len(grammar)
            self._verdicts[grammar] = verdict
            while self._kept_bytes > MAX_KEPT_BYTES and len(self._verdicts) > 1:
                oldest, _ = self._verdicts.popitem(last=False)
                self._kept_bytes -= len(oldest)


def _settled(verdict: str) -> Future[None]:
    """A future that has ended with a verdict."""
    future: Future[None] = Future()
    try:
        _raise(verdict)
        future.set_result(None)
    except InvalidRequestError as error:
        future.set_exception(error)
    return future


def _raise(verdict: str) -> None:
    if verdict:
        raise InvalidRequestError(verdict, param=FIELD, code="invalid_grammar")


class _LostError(Exception):
    """The process gave no answer: it took too long, or it ended."""


class _Process:
    """One process, started when it is first needed and again after it was lost."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-P", "-m", "quire.text.grammar_process", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def ensure_started(self) -> None:
        """Start it unless it runs, again where it ended between two grammars; raises _LostError."""
        if self._process is not None and self._process.poll() is not None:
            self.kill()
        if self._process is None:
            self._start()

    def check(self, grammar: str) -> str:
        """What is wrong with the grammar, empty when nothing is; raises _LostError without an answer."""
        process = self._process
        if process is None:
            raise _LostError("the server is stopping")
        body = grammar.encode("utf-8", "surrogatepass")
        assert process.stdin is not None
        try:
            process.stdin.write(LENGTH.pack(len(body)) + body)
            process.stdin.flush()
        except OSError:
            raise _LostError("the process that compiles grammars ended") from None
        return self._answer(process, CHECK_SECONDS)

    def kill(self) -> None:
        """End the process at once; the next check starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be written to a process that ended
                    pipe.close()

    def _start(self) -> None:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = process
        self._answer(process, START_SECONDS)

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> str:
        end = time.monotonic() + seconds
        (length,) = LENGTH.unpack(self._read(process, LENGTH.size, end))
        return self._read(process, length, end).decode("utf-8", "replace")

    def _read(self, process: subprocess.Popen[bytes], count: int, end: float) -> bytes:
        assert process.stdout is not None
        parts = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(parts) < count:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise _LostError(f"it takes longer than {CHECK_SECONDS} seconds; make it smaller")
                part = os.read(process.stdout.fileno(), count - len(parts))
                if not part:
                    raise _LostError("it ended the process that tried it; make it smaller")
                parts += part
        return bytes(parts)
