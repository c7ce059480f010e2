"""Flags made from the fields of the config dataclasses, and the way back: command line and YAML file to dataclasses.

A field named `max_model_len` becomes `--max-model-len`; its sentence is the help, its type is checked here, its choices
and range by the dataclass. A YAML file given with `--config` fills the same fields under the same names, and those that
have no flag; the command line wins. This file knows no setting by name but the API key, and that fields ending in
`_bytes` take size suffixes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quire.base.config import (
    API_KEY_VARIABLE,
    PRESETS,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    ServerConfig,
    parse_bytes,
    split_options,
)
from quire.base.errors import ConfigError

ENGINE_PARTS: dict[str, type] = {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig}
SERVER_PARTS: dict[str, type] = {"server": ServerConfig}


@dataclasses.dataclass(frozen=True, slots=True)
class FlagSpec:
    """One setting as a flag: what kind of value it takes and how to read it."""

    field: dataclasses.Field[Any]
    kind: type
    """str, int, float or bool; of each item when `is_tuple`."""
    is_tuple: bool

    @property
    def spellings(self) -> list[str]:
        """The flag and its aliases, as typed."""
        names = (self.field.name, *self.field.metadata.get("aliases", ()))
        return ["--" + name.replace("_", "-") for name in names]

    @property
    def is_flag(self) -> bool:
        """Whether the command line has it too; a file has every setting."""
        return bool(self.field.metadata.get("flag", True))

    @property
    def help(self) -> str:
        """The field's sentence and its default."""
        default = self.field.default
        shown = "" if default is None or default == () or default == "" else f" Default: {default}."
        choices = self.field.metadata.get("choices")
        allowed = f" One of {', '.join(map(str, choices))}." if choices else ""
        return f"{self.field.metadata.get('help', '')}{allowed}{shown}".replace("%", "%%")

    def read(self, text: str) -> Any:
        """One value from its text; raises ValueError with what is wrong."""
        if self.field.name.endswith("_bytes"):
            return parse_bytes(text)
        try:
            return self.kind(text)
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}.get(self.kind, "text")
            raise ValueError(f"{text!r} is not {wanted}") from None


def flag_specs(parts: Mapping[str, type]) -> dict[str, FlagSpec]:
    """The settings of some config classes, by field name."""
    specs: dict[str, FlagSpec] = {}
    for cls in parts.values():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind, is_tuple = _kind(hints[field.name])
            specs[field.name] = FlagSpec(field, kind, is_tuple)
    return specs


def _kind(hint: Any) -> tuple[type, bool]:
    """The scalar type behind `X`, `X | None` and `tuple[X, ...]`, and whether it is a tuple."""
    arguments = [item for item in typing.get_args(hint) if item is not types.NoneType and item is not Ellipsis]
    if typing.get_origin(hint) is tuple:
        return arguments[0], True
    return (arguments[0] if arguments else hint), False


def add_config_flags(parser: argparse.ArgumentParser, parts: Mapping[str, type], *, skip: tuple[str, ...] = ()) -> None:
    """Add a flag for every field of `parts`, one help section per class; unset flags leave no trace in the result."""
    for cls in parts.values():
        group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
        for name, spec in flag_specs({"": cls}).items():
            if spec.is_flag and name not in skip:
                _add_flag(group, name, spec)


def _add_flag(group: argparse._ArgumentGroup, name: str, spec: FlagSpec) -> None:
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": spec.help}
    if spec.kind is bool:
        group.add_argument(*spec.spellings, action=argparse.BooleanOptionalAction, **common)
        return
    reader = _for_argparse(spec.read)
    metavar = {int: "N", float: "X"}.get(spec.kind, "TEXT")
    if name.endswith("_bytes"):
        metavar = "SIZE"
    if spec.is_tuple:
        group.add_argument(*spec.spellings, action=_Extend, type=reader, metavar=metavar, **common)
    else:
        group.add_argument(*spec.spellings, type=reader, metavar=metavar, **common)


def _for_argparse(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let a reader's own words reach the user; argparse hides those of a ValueError."""

    @functools.wraps(read)
    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


class _Extend(argparse.Action):
    """Collects values given by repetition, by commas, or both, in order."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Append the values of one appearance."""
        before = getattr(namespace, self.dest, ())
        setattr(namespace, self.dest, (*before, *(item.strip() for item in str(values).split(",") if item.strip())))


def add_engine_flags(parser: argparse.ArgumentParser, *, with_server: bool = False, skip: tuple[str, ...] = ()) -> None:
    """Add `--config`, `--preset` and the flags of the engine (and of the server)."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these settings; the command line wins.")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="Batch settings for low latency or for high throughput."
    )
    add_config_flags(parser, ENGINE_PARTS | SERVER_PARTS if with_server else ENGINE_PARTS, skip=skip)


def refuse_engine_flags(args: argparse.Namespace, *, allowed: tuple[str, ...] = ()) -> None:
    """Raise ConfigError when engine settings stand beside `--url`: the server there would never hear of them."""
    for name in (*flag_specs(ENGINE_PARTS), "config", "preset"):
        if name not in allowed and getattr(args, name, None) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} sets up an engine of our own and does nothing to the server at --url; drop one")


@dataclasses.dataclass(frozen=True, slots=True)
class GivenOptions:
    """What the operator set, on the command line and in the YAML file it names; defaults are not filled in."""

    preset: str | None
    engine: dict[str, Any]
    server: dict[str, Any]

    def engine_config(self) -> EngineConfig:
        """The engine's configuration; raises ConfigError for values that are not allowed."""
        return EngineConfig.from_options(preset=self.preset, **self.engine)

    def server_config(self) -> ServerConfig:
        """The server's configuration; raises ConfigError for values that are not allowed."""
        return ServerConfig(**self.server)


def read_options(args: argparse.Namespace) -> GivenOptions:
    """Collect the settings of a command line and its YAML file; the command line wins.

    The file may hold settings of engine and server, whatever command reads it, so that one file describes a deployment.

    Raises:
        ConfigError: for an unknown or badly typed key in the file, or a file that cannot be read.
    """
    parts = ENGINE_PARTS | SERVER_PARTS
    options = read_yaml(Path(args.config), parts) if args.config else {}
    preset = options.pop("preset", None)
    given = {name: value for name, value in vars(args).items() if name in flag_specs(parts)}
    positional = getattr(args, "positional_model", None)
    if positional is not None:
        if given.get("model", positional) != positional:
            raise ConfigError(f"the model is given twice: {positional} and --model {given['model']}")
        given["model"] = positional
    options |= given
    if not options.get("api_key") and os.environ.get(API_KEY_VARIABLE):
        options["api_key"] = tuple(key.strip() for key in os.environ[API_KEY_VARIABLE].split(",") if key.strip())
    server = {name: value for name, value in options.items() if name in flag_specs(SERVER_PARTS)}
    engine = {name: value for name, value in options.items() if name not in server}
    return GivenOptions(args.preset or preset, engine, server)


def read_yaml(path: Path, parts: Mapping[str, type]) -> dict[str, Any]:
    """Settings from a YAML mapping, keyed by field name; `-` and `_` in keys are the same.

    Raises:
        ConfigError: for unreadable files, other YAML than a mapping, unknown keys (naming the nearest), wrong types.
    """
    import yaml  # only who gives a file needs the parser

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"--config {path} must hold settings as `name: value` lines, found {type(data).__name__}")
    flat = {str(key).replace("-", "_"): value for key, value in data.items()}
    preset = {"preset": flat.pop("preset")} if "preset" in flat else {}
    try:
        sorted_options = split_options(flat, parts)
        specs = flag_specs(parts)
        return preset | {
            name: _from_yaml(specs[name], value) for part in sorted_options.values() for name, value in part.items()
        }
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None


def _from_yaml(spec: FlagSpec, value: Any) -> Any:
    """Check and convert one YAML value; text is read as on the command line."""
    name = spec.field.name
    if value is None:
        return spec.field.default
    if spec.is_tuple:  # `split_options` made and checked the tuple
        return value
    if isinstance(value, str) and spec.kind is not bool:
        try:
            return spec.read(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    if spec.kind is float and type(value) is int:
        return float(value)
    if type(value) is not spec.kind:
        raise ConfigError(f"{name} takes {spec.kind.__name__}, found {value!r}")
    return value
