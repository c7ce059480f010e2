"""Say whether a checkpoint is supported, how it would run, and what memory it needs, without reading its weights.

MODEL is a checkpoint directory or a hub id, of which only the small files are fetched. The memory plan is the one
`quire serve` would make with the same settings. The exit status is 0 when the model runs (natively or by the adapter),
1 when it is refused or does not fit, 2 when MODEL is no checkpoint or a setting is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from typing import Any

from quire.base.config import EngineConfig, parse_bytes
from quire.base.cpu_kernels import REFERENCE, chosen_instruction_set
from quire.base.errors import ConfigError
from quire.cli.flags import add_engine_flags, read_options
from quire.engine.memory import MemoryPlan
from quire.engine.resolve import DeviceFacts, resolve
from quire.models.check import CheckReport, LoadedSizes, check_model
from quire.models.encoder_families import ENCODERS
from quire.models.families import FAMILIES
from quire.models.hub import locate_model
from quire.models.inspect import inspect_model
from quire.runner.host_resources import available_memory, usable_cores
from quire.text.template_traits import tool_format


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `quire check`."""
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="A checkpoint's directory or hub id.")
    parser.add_argument(
        "--list", action="store_true", help="List the architectures that run natively, and nothing else."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument(
        "--memory", metavar="SIZE", help="Plan for a machine with this much free memory, such as 16GiB; this one's "
        "when not given."
    )  # fmt: skip
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; see the module's docstring for the exit status."""
    options = read_options(args)
    config = options.engine_config()
    for module in config.model.plugins:
        _import_plugin(module)
    if args.list:
        print(json.dumps(supported_architectures(), indent=2) if args.json else _list_text())
        return 0
    path = locate_model(config.model.model, revision=config.model.revision, weights=False)
    report = check_model(path, tool_format=tool_format)
    plan: MemoryPlan | None = None
    obstacle: str | None = None
    if report.is_supported and report.num_parameters is not None:
        try:
            plan, loaded = _plan(config, report, args.memory)
            report = dataclasses.replace(report, loaded=loaded)
        except ConfigError as error:
            obstacle = str(error)
    print(json.dumps(_as_dict(report, plan, obstacle), indent=2) if args.json else _as_text(report, plan, obstacle))
    return 0 if report.is_supported and obstacle is None else 1


def supported_architectures() -> list[dict[str, str]]:
    """The native architectures, plugins included, as plain data (S125)."""
    return [{"architecture": name, "family": entry.family} for name, entry in (FAMILIES | ENCODERS).items()]


def _list_text() -> str:
    return "\n".join(f"{entry['architecture']:<24}{entry['family']}" for entry in supported_architectures())


def _import_plugin(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"plugin {module!r} cannot be imported: {error}") from error


def _plan(config: EngineConfig, report: CheckReport, memory: str | None) -> tuple[MemoryPlan, LoadedSizes]:
    """The memory plan that starting with `config` would make, here or with `memory` free bytes; raises ConfigError."""
    info = inspect_model(report.path, require_weights=False)
    resolved = resolve(config, info, _facts(config, memory), tokenizer_path=report.path)
    plan = resolved.memory
    sizes = LoadedSizes(
        dtype=resolved.weight_format,
        weight_bytes=plan.weight_bytes,
        kv_dtype=resolved.kv_cache_dtype,
        kv_bytes_per_token=plan.kv_bytes_per_token,
    )
    return plan, sizes


def _facts(config: EngineConfig, memory: str | None) -> DeviceFacts:
    device = "cpu" if config.model.device == "auto" else config.model.device
    if memory is None and device != "cpu":
        raise ConfigError(f"this command does not touch the {device} device; say what is free on it, as --memory 80GiB")
    try:
        free = available_memory() if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from None
    return DeviceFacts(
        name=device,
        auto_dtype="float32" if device == "cpu" else "bfloat16",
        free_bytes=free,
        threads=usable_cores(),
        kernels=chosen_instruction_set() if device == "cpu" else REFERENCE,
    )


def _as_dict(report: CheckReport, plan: MemoryPlan | None, obstacle: str | None) -> dict[str, Any]:
    memory = (
        None
        if plan is None
        else dataclasses.asdict(plan) | {"kv_bytes": plan.kv_bytes, "total_bytes": plan.total_bytes}
    )
    return report.as_dict() | {"memory": memory, "obstacle": obstacle}


def _as_text(report: CheckReport, plan: MemoryPlan | None, obstacle: str | None) -> str:
    lines = report.lines()
    if plan is not None:
        lines += ["", "memory, as quire serve would use it:", *("  " + line for line in plan.lines())]
    elif obstacle is not None:
        lines += ["", f"does not fit as asked: {obstacle}"]
    elif report.is_supported:
        lines += ["", "memory: unknown until the headers of the weight files are here"]
    return "\n".join(lines)
