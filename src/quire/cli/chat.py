"""Talk to a model in the terminal, with an engine of its own or with a server (--url).

While an answer is written, ctrl-c ends the answer, not the conversation. Input may come from a pipe: every line is a
turn, and only the answers go to standard output.

    /reset          forget the conversation
    /system TEXT    set the system message and forget the conversation
    /help           list these commands
    /exit           leave (so does the end of the input)
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.base.log import configure_logging
from quire.cli.source import Message, TextSource, add_source_flags, open_source, sampling_options

COMMANDS = ("/reset", "/system TEXT", "/help", "/exit")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire chat`."""
    parser.add_argument("--system", metavar="TEXT", help="The system message.")
    add_source_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Hold a conversation until the input ends."""
    configure_logging("warning")
    is_terminal = sys.stdin.isatty()
    options = sampling_options(args)
    # A Runner keeps one event loop over many turns, and turns ctrl-c into a cancellation of the turn it interrupts.
    with asyncio.Runner() as runner:
        source = runner.run(open_source(args))
        try:
            if is_terminal:
                print(f"{source.name} · /help lists the commands", file=sys.stderr)
            conversation = Conversation(args.system)
            for line in _turns(is_terminal=is_terminal):
                if line.startswith("/"):
                    if not _command(line, conversation):
                        break
                    continue
                _answer(runner, source, conversation=conversation, line=line, options=options)
        finally:
            runner.run(source.close())
    return 0


class Conversation:
    """The messages so far. The client holds them; a server needs no memory of us."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def add(self, role: str, content: str) -> None:
        """Append one message."""
        self.messages.append({"role": role, "content": content})

    def drop_last(self) -> None:
        """Take back the last message, so that a refused turn can be asked differently."""
        self.messages.pop()


def _turns(*, is_terminal: bool) -> Iterator[str]:
    """The user's lines, blank ones left out, until the input ends or ctrl-c at the prompt."""
    while True:
        try:
            line = input("> " if is_terminal else "")
        except (EOFError, KeyboardInterrupt):
            if is_terminal:
                print()
            return
        if line.strip():
            yield line.strip()


def _command(line: str, conversation: Conversation) -> bool:
    """Carry out a slash command; False ends the conversation."""
    name, _, rest = line.partition(" ")
    if name == "/exit":
        return False
    if name == "/system" and rest.strip():
        conversation.system = rest.strip()
        conversation.reset()
    elif name == "/reset":
        conversation.reset()
    else:
        print(f"commands: {', '.join(COMMANDS)}", file=sys.stderr)
    return True


def _answer(
    runner: asyncio.Runner, source: TextSource, *, conversation: Conversation, line: str, options: dict[str, Any]
) -> None:
    """Print the answer to one turn and remember both; a refused turn is taken back."""
    conversation.add("user", line)
    pieces: list[str] = []
    try:
        runner.run(_print_answer(source, conversation.messages, pieces=pieces, options=options))
    except KeyboardInterrupt:
        print("\n(interrupted)", file=sys.stderr)
    except InvalidRequestError as error:
        print(f"refused: {error}", file=sys.stderr)
        conversation.drop_last()
        return
    conversation.add("assistant", "".join(pieces))


async def _print_answer(
    source: TextSource, messages: list[Message], *, pieces: list[str], options: dict[str, Any]
) -> None:
    async for piece in source.chat(messages, options):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print(flush=True)
