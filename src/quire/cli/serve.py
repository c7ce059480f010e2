"""Serve a model over an OpenAI-compatible HTTP API.

Without MODEL it serves the small demo model that ships with quire. The API key may also come from QUIRE_API_KEY, which
keeps it out of the process list. The server runs in this process and the engine in one of its own.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from quire.base.collection import uncollected
from quire.base.config import EngineConfig, ServerConfig
from quire.base.log import configure_logging
from quire.cli.flags import add_engine_flags, read_options
from quire.engine.process import EngineProcess

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine
    from quire.engine.info import EngineInfo


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire serve`."""
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="A checkpoint's directory or hub id.")
    add_engine_flags(parser, with_server=True)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status is the server's."""
    options = read_options(args)
    engine_config, server_config = options.engine_config(), options.server_config()
    configure_logging(server_config.log_level, style=server_config.log_style)
    print(f"quire is loading {engine_config.model.model}", file=sys.stderr, flush=True)
    process = EngineProcess()
    try:
        return _serve(engine_config, server_config, process)
    finally:
        process.discard()


def _serve(engine_config: EngineConfig, server_config: ServerConfig, process: EngineProcess) -> int:
    with uncollected():  # what the server itself imports takes a third of the time that its engine needs for torch
        from quire.engine.async_engine import AsyncEngine
        from quire.server.serve import serve
    started: list[EngineInfo] = []

    async def start_engine() -> AsyncEngine:
        log = (server_config.log_level, server_config.log_style)
        engine = await AsyncEngine.start(engine_config, on_phase=_print_phase, log=log, process=process)
        engine.step_timeout = server_config.step_timeout
        started.append(engine.info)
        return engine

    def on_ready(url: str) -> None:
        print("\n".join(ready_lines(started[0], url, server_config)), file=sys.stderr, flush=True)

    return serve(start_engine, server_config, on_ready=on_ready)


def _print_phase(name: str) -> None:
    print(f"  {name}", file=sys.stderr, flush=True)


def ready_lines(info: EngineInfo, url: str, config: ServerConfig) -> list[str]:
    """What the operator reads once the server is ready: how it got there, what it may hold, and what to try next."""
    model = info.served_names[0]
    key = ' -H "Authorization: Bearer $QUIRE_API_KEY"' if config.api_key or config.tenants_file else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return [
        "",
        *(f"  {line}" for line in info.ledger),
        "",
        f"{model} is ready at {url}/v1 (context {info.max_model_len} tokens, {info.max_num_seqs} requests at once)",
        "",
        "try it:",
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        f"  quire chat --url {url}",
        "",
        "ctrl-c ends the server once open requests are answered; a second one ends it at once",
    ]
