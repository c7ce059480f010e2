"""Measure on this machine: throughput, load, paging, a cold start, several servers, operations, quantized weights.

Every number is of this run; a ratio compares two sides of the same run. Counts and times are bounded by the flags.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import shlex
import signal
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quire.base.config import BUILTIN_MODEL, PAGE_SIZES
from quire.base.log import configure_logging
from quire.cli.flags import add_engine_flags, read_options

if typing.TYPE_CHECKING:
    from quire.bench import beside, compare

_NARROW_FORMATS = ("bfloat16", "bfloat16_dot", "int8", "int4")
"""Weight formats of the CPU kernels beside float32; named here because the kernels' own list comes with torch."""
EXIT_TERMINATED = 128 + signal.SIGTERM


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire bench`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(_KINDS) + "}")
    for name, (help_text, configure_kind, _) in _KINDS.items():
        kind = kinds.add_parser(name, help=help_text)
        configure_kind(kind)
        kind.add_argument("--json", action="store_true", help="Print the result as JSON.")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    configure_logging("warning")
    _, _, run_kind = _KINDS[args.kind]
    return run_kind(args)


def _add_load_flags(parser: argparse.ArgumentParser, load: type, texts: dict[str, str]) -> None:
    """A flag for each described field of a load dataclass, with its default and type."""
    hints = typing.get_type_hints(load)
    for field in dataclasses.fields(load):
        if field.name not in texts:
            continue
        arguments = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        kind = arguments[0] if arguments else hints[field.name]
        default = None if field.default is None else field.default
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=f"load_{field.name}",
            type=kind,
            default=default,
            metavar={int: "N", float: "X"}.get(kind, "TEXT"),
            help=f"{texts[field.name]} Default: {default}." if default is not None else texts[field.name],
        )


def _load_options(args: argparse.Namespace) -> dict[str, Any]:
    prefix = "load_"
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def _configure_offline(parser: argparse.ArgumentParser) -> None:
    from quire.bench.offline import OfflineLoad

    texts = {
        "num_requests": "Requests sent at once.",
        "num_alone": "Requests run one at a time.",
        "input_low": "Shortest prompt, in tokens.",
        "input_high": "Longest prompt, in tokens.",
        "output_tokens": "Tokens each request generates.",
        "max_seconds": "Time limit for the run.",
    }
    _add_load_flags(parser, OfflineLoad, texts)
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="A checkpoint's directory or hub id.")
    add_engine_flags(parser)


def _run_offline(args: argparse.Namespace) -> int:
    from quire.bench import offline, report
    from quire.engine.llm import LLM

    load = offline.OfflineLoad(**_load_options(args))
    options = read_options(args)
    with LLM(preset=options.preset, **options.engine) as llm:
        result = offline.run_offline(llm, load)
    print(report.as_json(result) if args.json else offline.describe(result))
    return 0


def _configure_serving(parser: argparse.ArgumentParser) -> None:
    from quire.bench.serving import Load

    parser.add_argument("--url", default="http://127.0.0.1:8000", help="The server. Default: http://127.0.0.1:8000.")
    parser.add_argument("--model", help="The model to ask for; the first the server lists when not given.")
    texts = {
        "num_requests": "Requests per measured rate.",
        "concurrency": "Most requests open at once.",
        "prompt_words": "Words per prompt.",
        "output_tokens": "Tokens each request generates.",
        "max_seconds": "Time limit per measured rate.",
        "seed": "Seed of arrivals and prompts.",
    }
    _add_load_flags(parser, Load, texts)
    parser.add_argument(
        "--rate", type=float, nargs="+", metavar="X", help="Requests per second, as a Poisson process; several give a "
        "goodput curve. Without it, --concurrency requests are kept open."
    )  # fmt: skip
    parser.add_argument("--target-first-token", type=float, default=1.0, metavar="X", help="Seconds. Default: 1.")
    parser.add_argument("--target-inter-token", type=float, default=0.1, metavar="X", help="Seconds. Default: 0.1.")
    parser.add_argument("--target-share", type=float, default=0.9, metavar="X", help="Of requests. Default: 0.9.")


def _run_serving(args: argparse.Namespace) -> int:
    print(asyncio.run(_serving(args)))
    return 0


async def _serving(args: argparse.Namespace) -> str:
    from quire.bench import report, serving
    from quire.bench.client import Endpoint

    options = _load_options(args)
    endpoint = Endpoint(args.url, max_connections=options["concurrency"])
    try:
        model = await endpoint.pick_model(args.model)
        rates: list[float] = args.rate or []
        if len(rates) < 2:
            load = serving.Load(model=model, rate=rates[0] if rates else None, **options)
            result = await serving.run_load(endpoint, load)
            return report.as_json(result) if args.json else serving.describe(result)

        async def measure(rate: float) -> serving.ServingResult:
            return await serving.run_load(endpoint, serving.Load(model=model, rate=rate, **options))

        targets = serving.Targets(
            first_token=args.target_first_token, inter_token=args.target_inter_token, share=args.target_share
        )
        curve = await serving.goodput_curve(measure, rates, targets)
        return report.as_json(curve) if args.json else serving.describe_curve(curve)
    finally:
        await endpoint.close()


def _configure_steps(parser: argparse.ArgumentParser) -> None:
    from quire.bench.steps import SAMPLING, StepLoad

    texts = {
        "prompt_tokens": "Tokens of each prompt.",
        "steps": "Steps measured per batch.",
        "max_seconds": "Time limit per batch.",
        "constrained": "Rows that write JSON under a schema; measured beside the same batch without.",
    }
    _add_load_flags(parser, StepLoad, texts)
    default = StepLoad()
    parser.add_argument(
        "--rows", dest="load_rows", type=int, nargs="+", metavar="N", default=default.rows, help="Requests that decode "
        f"together. Default: {' '.join(map(str, default.rows))}."
    )  # fmt: skip
    parser.add_argument(
        "--sampling", dest="load_sampling", nargs="+", choices=tuple(SAMPLING), default=default.sampling,
        help=f"How they draw. Default: {' '.join(default.sampling)}."
    )  # fmt: skip
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="A checkpoint's directory or hub id.")
    add_engine_flags(parser)


def _run_steps(args: argparse.Namespace) -> int:
    from quire.base.config import EngineConfig
    from quire.bench import report, steps

    given = _load_options(args)
    load = steps.StepLoad(**given | {name: tuple(given[name]) for name in ("rows", "sampling")})
    options = read_options(args)
    costs = steps.run_steps(EngineConfig.from_options(preset=options.preset, **options.engine), load)
    print(report.as_json(costs) if args.json else steps.describe(costs))
    return 0


def _configure_paging(parser: argparse.ArgumentParser) -> None:
    shape = {"rows": 16, "context": 512, "num-heads": 8, "num-kv-heads": 2, "head-dim": 64}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"Default: {default}.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="Default: float32.")
    parser.add_argument("--backend", default="cpu", help="Attention backend, or the device whose best one is meant.")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="Rounds of measuring. Default: 30.")
    parser.add_argument("--max-seconds", type=float, default=60.0, metavar="X", help="Time limit. Default: 60.")
    sizes = " ".join(map(str, PAGE_SIZES))
    parser.add_argument(
        "--page-size", type=int, nargs="+", choices=PAGE_SIZES, default=PAGE_SIZES, help=f"Default: {sizes}."
    )


def _run_paging(args: argparse.Namespace) -> int:
    from quire.bench import paging, report

    shape = paging.AttentionShape(
        rows=args.rows,
        context=args.context,
        num_heads=args.num_heads,
        num_kv_heads=args.num_kv_heads,
        head_dim=args.head_dim,
        dtype=args.dtype,
    )
    sizes = tuple(args.page_size)
    result = paging.run_paging(shape, sizes, backend=args.backend, rounds=args.rounds, max_seconds=args.max_seconds)
    print(report.as_json(result) if args.json else paging.describe(result))
    return 0


def _configure_startup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=BUILTIN_MODEL, metavar="MODEL", help="Default: the built-in one.")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="Starts, one after the other. Default: 3.")
    parser.add_argument("--max-seconds", type=float, default=60.0, metavar="X", help="Limit per start. Default: 60.")


def _run_startup(args: argparse.Namespace) -> int:
    from quire.bench import report, startup

    result = asyncio.run(startup.run_startup(args.model, runs=args.runs, max_seconds=args.max_seconds))
    print(report.as_json(result) if args.json else startup.describe(result))
    return 0


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    from quire.bench.suite import PARTS, Sizes

    parser.add_argument(
        "--target", action="append", required=True, metavar="NAME=COMMAND", help="A server's command line, with {port} "
        "where its port goes; the word quire is this installation. Give it once per server; the first is compared with "
        "the others."
    )  # fmt: skip
    parser.add_argument("--workload", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="Default: all.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="Starts of every server. Default: 3.")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Also write the result as an HTML page.")
    parser.add_argument("--model", help="The model to ask for; the first that a server lists when not given.")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="Where tokenizer.json is; for servers that take text but no token ids."
    )
    parser.add_argument("--chat", action="store_true", help="Send chat requests; needs --tokenizer.")
    parser.add_argument("--start-seconds", type=float, default=300, metavar="X", help="Limit per start. Default: 300.")
    parser.add_argument("--max-seconds", type=float, default=600, metavar="X", help="Limit per workload. Default: 600.")
    texts = {
        "prompt_tokens": "single: prompt tokens.",
        "output_tokens": "single: output tokens.",
        "repeats": "single, prefill: requests per round, whose median counts.",
        "batch_requests": "offline: requests sent at once.",
        "prompt_low": "offline, online: shortest prompt.",
        "prompt_high": "offline, online: longest prompt.",
        "output_low": "offline, online: shortest answer.",
        "output_high": "offline, online: longest answer.",
        "prefix_requests": "prefix: requests sent at once, twice.",
        "prefix_tokens": "prefix: tokens that all of them share.",
        "suffix_tokens": "prefix: tokens that each has of its own.",
        "prefix_output_tokens": "prefix: tokens of each answer.",
        "requests_per_client": "online: requests per client; at most 64 in all, or one each.",
        "token_low": "Lowest token id of prompts.",
        "token_high": "Prompts have token ids below this one.",
        "seed": "Seed of prompts and lengths.",
    }
    _add_load_flags(parser, Sizes, texts)
    lists = {"prefill_tokens": "prefill: prompt lengths.", "clients": "online: numbers of clients."}
    for name, text in lists.items():
        default = getattr(Sizes(), name)
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=f"load_{name}", type=int, nargs="+", metavar="N", default=default,
            help=f"{text} Default: {' '.join(map(str, default))}."
        )  # fmt: skip


def _run_compare(args: argparse.Namespace) -> int:
    from quire.bench import compare, report, suite
    from quire.bench.target import Target

    options = _load_options(args)
    sizes: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in options.items()}
    plan = compare.Plan(
        targets=tuple(map(Target.parse, args.target)),
        parts=tuple(part for part in suite.PARTS if part in args.workload),
        rounds=args.rounds,
        sizes=suite.Sizes(**sizes),
        model=args.model,
        tokenizer=args.tokenizer,
        is_chat=args.chat,
        start_seconds=args.start_seconds,
        max_seconds=args.max_seconds,
    )
    try:
        result = asyncio.run(_compare(plan, args.output))
    except asyncio.CancelledError:
        return EXIT_TERMINATED
    print(report.as_json(result) if args.json else compare.describe(result))
    return 1 if result.problems else 0


async def _compare(plan: compare.Plan, output: Path | None) -> compare.CompareResult:
    from quire.bench import chart, compare

    def save(result: compare.CompareResult) -> None:
        if output is not None:
            output.write_text(chart.page(result), encoding="utf-8")

    if output is not None:
        output.touch()  # a folder that is not there is known now, and not after the first server
    task = asyncio.current_task()
    assert task is not None, "inside asyncio.run"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that no server outlives this one
    return await compare.run_compare(plan, say=_say, save=save)


def _configure_batch(parser: argparse.ArgumentParser) -> None:
    from quire.bench.beside import BesideLoad

    parser.add_argument("--url", help="A running server with --files-dir; without it one is started for the run.")
    parser.add_argument("--model", help="The model to ask for; the first the server lists when not given.")
    parser.add_argument(
        "--serve", default="", metavar="OPTIONS", help="What `quire serve` is started with: a model, flags."
    )  # fmt: skip
    parser.add_argument("--start-seconds", type=float, default=300, metavar="X", help="Limit for that. Default: 300.")
    texts = {
        "num_requests": "Requests per phase.",
        "rate": "Requests per second.",
        "prompt_words": "Words per prompt.",
        "output_tokens": "Tokens each request generates.",
        "rounds": "Phases without a batch, and as many with one.",
        "batch_lines": "Lines of the batch.",
        "batch_prompt_words": "Words per line.",
        "batch_output_tokens": "Tokens per line.",
        "max_seconds": "Time limit per phase.",
        "seed": "Seed of arrivals and prompts.",
    }
    _add_load_flags(parser, BesideLoad, texts)


def _run_batch(args: argparse.Namespace) -> int:
    from quire.bench import beside, report

    result = asyncio.run(_batch(args, beside.BesideLoad(**_load_options(args))))
    print(report.as_json(result) if args.json else beside.describe(result))
    return 1 if result.problems else 0


async def _batch(args: argparse.Namespace, load: beside.BesideLoad) -> beside.BesideResult:
    from quire.bench import beside
    from quire.bench.client import Endpoint

    async def measure(url: str) -> beside.BesideResult:
        endpoint = Endpoint(url)
        try:
            model = await endpoint.pick_model(args.model)
            return await beside.run_beside(endpoint, model, load, say=_say)
        finally:
            await endpoint.close()

    if args.url is not None:
        return await measure(args.url)
    async with beside.served(shlex.split(args.serve), start_seconds=args.start_seconds) as url:
        return await measure(url)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _configure_ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="A checkpoint's sizes; SmolLM2-135M's by default.")
    kinds, formats = ("linear", "attention", "experts", "rows"), ("float32", *_NARROW_FORMATS)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="Operations. Default: all.")
    parser.add_argument("--formats", nargs="+", choices=formats, default=formats, help="Of weights. Default: all.")
    lists = {"rows": (1, 2, 4, 8, 16, 32, 64, 512), "contexts": (512, 4096)}
    for name, default in lists.items():
        text = f"Default: {' '.join(map(str, default))}."
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, metavar="N", help=text)
    parser.add_argument("--threads", type=int, metavar="N", help="Threads beside one. Default: the machine's cores.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="Passes over each operation. Default: 5.")
    parser.add_argument("--max-seconds", type=float, default=180.0, metavar="X", help="Time limit. Default: 180.")


def _run_ops(args: argparse.Namespace) -> int:
    from quire.bench import op_shapes, ops, report
    from quire.runner.host_resources import usable_cores

    load = ops.OpsLoad(
        kinds=tuple(args.kinds),
        formats=tuple(args.formats),
        rows=tuple(args.rows),
        contexts=tuple(args.contexts),
        threads=usable_cores() if args.threads is None else args.threads,
        rounds=args.rounds,
        max_seconds=args.max_seconds,
    )
    shapes = op_shapes.SMOLLM2_135M if args.model is None else op_shapes.shapes_of(args.model)
    result = ops.run_ops(shapes, load)
    print(report.as_json(result) if args.json else ops.describe(result))
    return 0


def _configure_accuracy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=BUILTIN_MODEL, metavar="MODEL", help="Default: the built-in one.")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=_NARROW_FORMATS,
        default=_NARROW_FORMATS,
        help="Of weights, beside float32. Default: all.",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="What to predict: a text, or .jsonl with a string, {text}, or "
        "{prompt, completion} per line. Random token ids when not given."
    )  # fmt: skip
    parser.add_argument(
        "--other",
        nargs="+",
        default=(),
        metavar="DIR",
        help="Checkpoints of the same model to judge as well, in float32.",
    )
    texts = {
        "tokens": "Predictions to judge.",
        "context": "Longest text; longer ones are cut.",
        "seed": "Of random ids.",
    }
    for (name, text), default in zip(texts.items(), (2048, 512, 0), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} Default: {default}.")


def _run_accuracy(args: argparse.Namespace) -> int:
    from quire.bench import accuracy, documents, report
    from quire.models.hub import locate_model
    from quire.models.inspect import inspect_model
    from quire.text.tokenizer import Tokenizer

    load = accuracy.AccuracyLoad(formats=tuple(args.formats), tokens=args.tokens, context=args.context, seed=args.seed)
    info, *others = (inspect_model(locate_model(name)) for name in (args.model, *args.other))
    if args.text is None:
        texts = documents.random_documents(
            load.tokens, context=load.context, vocab_rows=info.vocab_rows, seed=load.seed
        )
    else:
        texts = documents.read_documents(args.text, Tokenizer.load(info.path))
    result = accuracy.run_accuracy(info, texts, load, others=others)
    print(report.as_json(result) if args.json else accuracy.describe(result))
    return 0


_KINDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "offline": (
        "one request at a time against all at once, engine in this process", _configure_offline, _run_offline
    ),
    "serving": ("latency and goodput of an OpenAI-style server under load", _configure_serving, _run_serving),
    "steps": ("what a decode step costs besides its kernels, engine in this process", _configure_steps, _run_steps),
    "paging": ("attention over pages against contiguous memory, by page size", _configure_paging, _run_paging),
    "startup": (
        "from starting `quire serve` to the first text, phase by phase", _configure_startup, _run_startup
    ),
    "compare": (
        "several servers on the same work, one at a time and in alternation", _configure_compare, _run_compare
    ),
    "batch": ("what a running batch costs those who ask beside it", _configure_batch, _run_batch),
    "ops": ("each operation against what this machine can do at most", _configure_ops, _run_ops),
    "accuracy": ("what weights in fewer bits cost: perplexity and divergence", _configure_accuracy, _run_accuracy),
}  # fmt: skip
"""Kinds of measurement: what each one is for, its flags, and what runs it."""
