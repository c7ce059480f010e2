"""Continue a text: print the model's continuation of a prompt as it is generated."""

from __future__ import annotations

import argparse
import asyncio
import sys

from quire.base.errors import ConfigError
from quire.base.log import configure_logging
from quire.cli.source import add_source_flags, open_source, sampling_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire complete`."""
    parser.add_argument("prompt", nargs="?", help="The text to continue; `-`, or nothing, reads standard input.")
    parser.add_argument("--echo", action="store_true", help="Print the prompt before its continuation.")
    add_source_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the continuation; the exit status is 0 when it is complete."""
    configure_logging("warning")
    prompt = _read_prompt(args.prompt)
    asyncio.run(_complete(args, prompt))
    return 0


def _read_prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise ConfigError('no prompt: give one as an argument, quire complete "Once upon a time", or on standard input')
    return sys.stdin.read()


async def _complete(args: argparse.Namespace, prompt: str) -> None:
    options = sampling_options(args)
    source = await open_source(args)
    try:
        if args.echo:
            print(prompt, end="", flush=True)
        async for piece in source.complete(prompt, options):
            print(piece, end="", flush=True)
        print()
    finally:
        await source.close()
