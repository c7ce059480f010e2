"""The `quire` command: finds the subcommand, loads only its module, and turns every failure into one last line.

Importing this file loads neither torch nor a web framework; a subcommand's module is imported once it is chosen. What a
subcommand does is its own file's business.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from quire import __version__
from quire.base.errors import ConfigError, QuireError

COMMANDS = {
    "serve": ("quire.cli.serve", "serve a model over an OpenAI-compatible HTTP API"),
    "chat": ("quire.cli.chat", "talk to a model in the terminal"),
    "complete": ("quire.cli.complete", "continue a text"),
    "run-batch": ("quire.cli.run_batch", "answer a file of requests in OpenAI's batch format"),
    "check": ("quire.cli.check", "say whether a checkpoint is supported and what memory it needs"),
    "conformance": ("quire.cli.conformance", "check an OpenAI-style server against what clients rely on"),
    "bench": ("quire.cli.bench", "measure throughput, latency and paging on this machine"),
}
"""Subcommand: the module that holds it, and one line for the overview."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, the last one, and names the nearest known option."""

    def __init__(self, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print where help is, then the cause, and exit with the status of a usage error."""
        self.exit(EXIT_USAGE, f"See: {self.prog} --help\n{self.prog}: error: {message}\n")

    def shorten_usage(self) -> None:
        """Keep thirty options out of the usage line, of subcommands too; the sections below it describe them."""
        actions = self._get_positional_actions()
        names = [str(action.metavar or action.dest.upper()) for action in actions]
        shown = [
            f"{action.option_strings[0]} {action.metavar}" for action in self._get_optional_actions() if action.required
        ]
        shown += [name if action.required else f"[{name}]" for name, action in zip(names, actions, strict=True)]
        self.usage = " ".join([self.prog, "[OPTIONS]", *shown])
        for parser in self._subparsers_of():
            parser.shorten_usage()

    def _subparsers_of(self) -> list[Parser]:
        choices = (action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return [parser for named in choices for parser in named.values()]

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Exit with an error for arguments no option took, naming the nearest option."""
        if not arguments:
            return
        name = arguments[0].split("=")[0]
        known = [option for parser in (self, *self._subparsers_of()) for option in parser._option_string_actions]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unknown argument {arguments[0]!r}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for usage and configuration errors)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        return _no_command(arguments)
    module = importlib.import_module(COMMANDS[name][0])
    parser = Parser(prog=f"quire {name}", description=module.__doc__)
    parser.add_argument("--traceback", action="store_true", help="Print the traceback of an error.")
    module.configure(parser)
    parser.shorten_usage()
    options, unknown = parser.parse_known_args(arguments[1:])
    parser.refuse_unknown(unknown)
    try:
        return int(module.run(options))
    except BaseException as error:  # noqa: BLE001 - the edge of the process: every failure becomes a status
        show_traceback = options.traceback or getattr(options, "debug", False)
        return _report(error, f"quire {name}", show_traceback=show_traceback)


def _no_command(arguments: list[str]) -> int:
    """Handle `quire`, `quire --help`, `quire --version` and a subcommand that does not exist."""
    name = arguments[0] if arguments else "--help"
    if name in ("--version", "-V"):
        print(f"quire {__version__}")
        return 0
    if name in ("--help", "-h", "help"):
        print("usage: quire COMMAND ...\n")
        print("\n".join(f"  {command:<11} {line}" for command, (_, line) in COMMANDS.items()))
        print("\nquire COMMAND --help describes one command; quire --version prints the version.")
        return 0 if arguments else EXIT_USAGE
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(COMMANDS)}"
    print(f"quire: error: unknown command {name!r}; {hint}", file=sys.stderr)
    return EXIT_USAGE


def _report(error: BaseException, prog: str, *, show_traceback: bool) -> int:
    """Print the cause as the last line and choose the exit status; a traceback only for bugs or when asked for."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader (head, say) has gone; what is still buffered must not raise again when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    is_expected = isinstance(error, QuireError | OSError)
    if show_traceback or not is_expected:
        traceback.print_exception(error)
    cause = str(error) if is_expected and str(error) else f"{type(error).__name__}: {error}"
    print(f"{prog}: error: {cause}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
