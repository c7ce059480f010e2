"""Check an OpenAI-style server, ours or another's, against what clients rely on, and print a score.

The lines are those of the project's wire checklist: M must hold, R should. A line that cannot be judged is skipped with
its reason: a model without a chat template, a feature that the server says it lacks, a line that needs --slow. The exit
status is 0 when every M line that ran passed, 1 otherwise.

    quire conformance http://127.0.0.1:8000
    quire conformance http://127.0.0.1:8000 --only tools 20 --json
    quire conformance --list
"""

from __future__ import annotations

import argparse
import asyncio
import os

from quire.base.config import API_KEY_VARIABLE
from quire.base.errors import ConfigError
from quire.base.log import configure_logging
from quire.conformance import report
from quire.conformance.outcome import Result
from quire.conformance.registry import choose
from quire.conformance.runner import run as run_checks
from quire.conformance.target import Options


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire conformance`."""
    parser.add_argument("base_url", nargs="?", metavar="BASE_URL", help="Such as http://127.0.0.1:8000, /v1 or not.")
    parser.add_argument("--list", action="store_true", help="List the lines, and check nothing.")
    parser.add_argument("--model", help="The model to ask for; the first that the server lists when not given.")
    parser.add_argument("--api-key", metavar="KEY", help=f"Default: the first of {API_KEY_VARIABLE}.")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="Sections or lines, such as: tools 20 h1."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--slow", action="store_true", help="Also the lines that load the server or wait long.")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="X", help="Seconds per request. Default: 60.")
    parser.add_argument("--max-seconds", type=float, default=1800.0, metavar="X", help="For everything. Default: 1800.")
    parser.add_argument(
        "--concurrency", type=int, default=1000, metavar="N", help="Requests at once, with --slow. Default: 1000."
    )


def run(args: argparse.Namespace) -> int:
    """Print each line as it is judged, then the score."""
    configure_logging("warning")
    checks = choose(args.only)
    if args.list:
        print(report.list_json(checks) if args.json else report.list_lines(checks))
        return 0
    options = _options(args)
    result = asyncio.run(run_checks(options, checks, max_seconds=args.max_seconds, say=_quiet if args.json else _say))
    print(report.as_json(result) if args.json else "\n" + report.score_lines(result))
    return 0 if result.score.is_conformant else 1


def _options(args: argparse.Namespace) -> Options:
    """The options, checked; raises ConfigError."""
    if args.base_url is None:
        raise ConfigError("no BASE_URL: name the server to check, such as http://127.0.0.1:8000, or give --list")
    if not args.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"BASE_URL {args.base_url!r} must begin with http:// or https://")
    for name in ("timeout", "max_seconds", "concurrency"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, found {getattr(args, name)}")
    key = args.api_key or os.environ.get(API_KEY_VARIABLE, "").split(",")[0].strip() or None
    return Options(
        base_url=args.base_url,
        model=args.model,
        api_key=key,
        timeout=args.timeout,
        is_slow=args.slow,
        concurrency=args.concurrency,
    )


def _say(result: Result) -> None:
    print(report.result_line(result), flush=True)


def _quiet(_: Result) -> None:
    """Say nothing: the whole report is printed as JSON."""
