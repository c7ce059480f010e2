"""Every setting of the engine and the server: frozen dataclasses, the only place where a setting is declared.

`cli/flags.py` makes the command line from these fields, a YAML file and `LLM(...)` keyword arguments fill the same
classes. This file knows types, defaults and ranges; what a setting means for a concrete model and machine is decided in
`engine/resolve.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import ConfigError

BUILTIN_MODEL = "quire-demo"
API_KEY_VARIABLE = "QUIRE_API_KEY"
"""Environment variable that holds the API key, for servers that accept one and for clients that send it."""

MAX_PORT = 65535
PAGE_SIZES = (8, 16, 32, 64, 128)
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = (*DTYPES, "int8")
PRESETS: dict[str, dict[str, Any]] = {
    "interactive": {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_prefill_tokens_mixed": 128},
    "throughput": {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "max_prefill_tokens_mixed": 2048},
}
"""What `preset` sets wherever the operator set nothing."""


_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
             "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """A number of bytes from `1500000`, `512MiB`, `1.5GiB`, `2G`: KiB is 1024 bytes, K and KB are 1000.

    Raises:
        ValueError: for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a size; write 1500000, 512MiB, 1.5GiB or 2G")
    return int(float(match[1]) * _SUFFIXES[match[2].upper()])


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    aliases: tuple[str, ...] = (),
    flag: bool = True,
) -> Any:
    """Declare a setting: its default, one sentence, allowed values or range, and other spellings users know.

    One without a `flag` is set in a YAML file or in Python: few change it, and the command line stays short.
    """
    meta = {"help": text, "choices": choices, "low": low, "high": high, "aliases": aliases, "flag": flag}
    if isinstance(default, list | dict | set):
        return field(default_factory=lambda: default, metadata=meta)
    return field(default=default, metadata=meta)


def _check_fields(config: Any) -> None:
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        meta = spec.metadata
        if value is None or not meta:
            continue
        _check_type(spec, value)
        choices, low, high = meta["choices"], meta["low"], meta["high"]
        if choices is not None and value not in choices:
            allowed = ", ".join(map(str, choices))
            raise ConfigError(f"{spec.name} is {value!r}; allowed: {allowed}")
        if low is None and high is None:
            continue
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            raise ConfigError(
                f"{spec.name} is {value}; allowed: {low if low is not None else '-inf'} to "
                f"{high if high is not None else 'any'}"
            )


_TYPES: dict[str, tuple[type | types.UnionType, str]] = {
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "text"),
}


def _check_type(spec: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value of another type than declared: the text "no" would count as true, 2.5 rows as a number."""
    name = str(spec.type).removesuffix(" | None")
    if name not in _TYPES:
        return
    allowed, wanted = _TYPES[name]
    if not isinstance(value, allowed) or (name != "bool" and isinstance(value, bool)):
        raise ConfigError(f"{spec.name} must be {wanted}, found {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, in what precision, on which device."""

    model: str = option(BUILTIN_MODEL, "Directory of a Hugging Face checkpoint, a hub id, or quire-demo (built in).")
    tokenizer: str | None = option(None, "Directory or hub id of the tokenizer; the model's own when not given.")
    revision: str | None = option(None, "Branch, tag or commit for a hub id.")
    served_model_name: tuple[str, ...] = option(
        (), "Names the API answers to; the first is reported. Default: the model."
    )
    dtype: str = option(
        "auto",
        "Precision of weights and activations; auto is the device's best, and on a CPU bfloat16 weights stay so.",
        choices=DTYPES,
    )
    quantization: str = option(
        "none",
        "Quantize the weights of linear layers while loading (CPU): int8 or int4.",
        choices=("none", "int8", "int4"),
    )
    max_model_len: int | None = option(None, "Longest prompt plus output, in tokens; derived when not given.", low=1)
    device: str = option("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))
    tensor_parallel_size: int = option(1, "Devices one model is split over.", low=1)
    chat_template: str | None = option(None, "File with a Jinja chat template that replaces the checkpoint's own.")
    generation_config: str = option(
        "auto",
        "Default sampling: the checkpoint's generation_config.json (auto) or quire's own (quire).",
        choices=("auto", "quire"),
    )
    seed: int = option(0, "Seed for requests that give none; their random numbers differ by request.")
    plugins: tuple[str, ...] = option(
        (), "Python modules imported at start; they register models, policies, processors."
    )
    weight_cache: str = option(
        "auto",
        "Where packed weights are kept for the next start (CPU): a directory, none, or ~/.cache/quire (auto).",
    )
    threads: int | None = option(None, "CPU threads for the model; the machine's cores when not given.", low=1)

    def __post_init__(self) -> None:
        """Check every field against its declaration."""
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    page_size: int = option(16, "Tokens per KV page.", choices=PAGE_SIZES, aliases=("block_size",))
    kv_cache_memory_bytes: int | None = option(
        None, "Bytes for KV pages (suffixes KiB, MiB, GiB allowed); derived from free memory when not given.", low=1
    )
    enable_prefix_caching: bool = option(True, "Keep pages of finished requests and reuse them for equal prefixes.")
    kv_cache_dtype: str = option(
        "auto", "Precision of K and V in the cache; int8 has a scale per token and head.", choices=KV_DTYPES
    )
    debug: bool = option(False, "Verify the cache after every step and poison freed pages with NaN (slow).")

    def __post_init__(self) -> None:
        """Check every field against its declaration."""
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who runs in a step, and how much."""

    max_num_seqs: int | None = option(None, "Most requests that run at once.", low=1, high=8192)
    max_num_batched_tokens: int | None = option(None, "Most tokens one step computes.", low=1)
    max_prefill_tokens_mixed: int | None = option(
        None, "Most prompt tokens one step computes while other requests decode; bounds their inter-token time.", low=1
    )
    scheduling_policy: str = option(
        "fair",
        "Order of the queue: fair (tokens shared between tenants, then by priority), priority, fcfs, or a plugin's.",
    )
    priority_ageing_seconds: float = option(
        30.0, "A waiting request gains one level of priority in this time, so that none starves.", low=0.001
    )
    async_scheduling: bool = option(False, "Overlap the host work of a step with the device time of the one before.")
    max_num_waiting: int = option(4096, "Requests that may wait; one more is refused with 503 and Retry-After.", low=1)

    def __post_init__(self) -> None:
        """Check every field against its declaration."""
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP server in front of an engine."""

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port to listen on; 0 picks a free one.", low=0, high=MAX_PORT)
    api_key: tuple[str, ...] = option((), "Keys that are accepted as bearer tokens; none leaves the server open.")
    tenants_file: str | None = option(None, "YAML file of tenants with keys, weights and quotas; read again on change.")
    admin_key: str | None = option(None, "Key (or sha256:DIGEST) of the /admin routes, which exist only with it.")
    admin_host: str = option("127.0.0.1", "Address to listen on for the /admin routes.", flag=False)
    admin_port: int | None = option(
        None,
        "Port to listen on for the /admin routes, 0 for a free one; the one after --port when not given.",
        low=0,
        high=MAX_PORT,
        flag=False,
    )
    max_queued_tokens: int | None = option(
        None, "Prompt tokens that may wait for their first output token; more are refused with 503.", low=1
    )
    allowed_hosts: tuple[str, ...] = option((), "Host headers accepted without a key besides loopback names.")
    allowed_origins: tuple[str, ...] = option((), "Origins for which CORS headers are sent.")
    root_path: str = option("", "Prefix of every route, such as /llm.")
    disabled_routes: tuple[str, ...] = option((), "Routes that are switched off, such as /v1/completions.")
    shutdown_timeout: float = option(30.0, "Seconds open requests get after SIGTERM.", low=0)
    step_timeout: float = option(
        300.0, "Seconds without a finished step, with work open, until the engine is stuck.", low=1
    )
    tool_call_parser: str = option("auto", "How the model writes tool calls; auto reads it off the chat template.")
    reasoning_parser: str = option("auto", "How the model marks its reasoning; auto reads it off the chat template.")
    files_dir: str | None = option(None, "Folder for uploaded files and batches; without it there are none.")
    files_quota_bytes: int | None = option(
        20 * 2**30, "Bytes all files, and results not yet in one, may take together.", low=1, flag=False
    )
    files_tenant_quota_bytes: int | None = option(None, "The same for the files of one tenant.", low=1, flag=False)
    files_retention_days: int | None = option(
        30,
        "Days a file stays that was not given a time of its own, and a batch after its end; null keeps both, files "
        "until they are deleted.",
        low=1,
        flag=False,
    )
    request_timeout: float | None = option(None, "Seconds any request may take, queue included.", low=0.001)
    max_body_bytes: int = option(32 * 2**20, "Longest body of a request, in bytes.", low=1024, flag=False)
    max_connections: int = option(
        8192, "Connections that may be open; those beyond get 503 and Retry-After, probes an answer.", low=1, flag=False
    )
    max_connections_per_address: int | None = option(
        None, "Connections that may be open from one address; for servers without a proxy in front.", low=1, flag=False
    )
    allow_request_chat_template: bool = option(
        False, "Let requests bring a chat template of their own; it runs in a sandbox.", flag=False
    )
    hooks: tuple[str, ...] = option(
        (), "Classes that see, change and refuse requests and answers, as package.module:name.", flag=False
    )
    hook_timeout: float = option(
        10.0, "Seconds a hook may take for a request or a piece of an answer, which then fails.", low=0.001, flag=False
    )
    coalesce_requests: bool = option(
        False, "Let identical greedy or seeded requests of a tenant share one generation while it runs.", flag=False
    )
    metrics_compat: str = option("vllm", "Also export metrics under another engine's names.", choices=("vllm", "none"))
    log_level: str = option("info", "Detail of the log.", choices=("debug", "info", "warning", "error"))
    log_style: str = option("text", "Shape of the log.", choices=("text", "json"))

    def __post_init__(self) -> None:
        """Check every field against its declaration."""
        _check_fields(self)
        if self.admin_key == "":
            raise ConfigError("admin_key is empty; give a key, or leave it out to have no /admin routes")
        if self.admin_key is None and (self.admin_port is not None or self.admin_host != "127.0.0.1"):
            raise ConfigError("admin_host and admin_port are for the /admin routes, which exist only with --admin-key")
        if self.admin_key is not None and self.admin_port is None and self.port == MAX_PORT:
            raise ConfigError(f"port is {MAX_PORT}, so no port comes after it for the /admin routes; set admin_port")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(f"root_path is {self.root_path!r}; it starts with / and does not end with one")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """All an engine needs to start, as the user asked for it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    @classmethod
    def from_options(cls, *, preset: str | None = None, **options: Any) -> EngineConfig:
        """Build from flat options (`model="...", page_size=16`), the spelling of `LLM(...)` and of the flags.

        Raises:
            ConfigError: for an unknown option (with the nearest known one), a bad value or a bad preset.
        """
        if preset is not None:
            if preset not in PRESETS:
                raise ConfigError(f"preset is {preset!r}; allowed: {', '.join(PRESETS)}")
            options = PRESETS[preset] | {k: v for k, v in options.items() if v is not None}
        parts = split_options(options, _ENGINE_PARTS)
        return cls(**{name: _ENGINE_PARTS[name](**values) for name, values in parts.items()})


_ENGINE_PARTS: dict[str, type] = {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig}


def split_options(options: Mapping[str, Any], parts: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """Sort flat options into the config classes that declare them, aliases included.

    Raises:
        ConfigError: for an option that no class declares, naming the nearest one.
    """
    owners: dict[str, tuple[str, dataclasses.Field[Any]]] = {}
    for part, cls in parts.items():
        for spec in dataclasses.fields(cls):
            for name in (spec.name, *spec.metadata.get("aliases", ())):
                owners[name] = (part, spec)
    result: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in options.items():
        if name not in owners:
            near = difflib.get_close_matches(name, owners, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown option {name!r}{hint}")
        part, spec = owners[name]
        if spec.name in result[part]:
            raise ConfigError(f"{spec.name} is given twice (once as {name})")
        result[part][spec.name] = _coerce(spec, value)
    return result


def _coerce(spec: dataclasses.Field[Any], value: Any) -> Any:
    """Accept sizes as text, paths, and a lone string, a list or nothing where a tuple of strings is declared."""
    if not str(spec.type).startswith("tuple"):
        if spec.name.endswith("_bytes") and isinstance(value, str):
            return _parse_size(spec.name, value)
        return os.fspath(value) if isinstance(value, os.PathLike) else value
    items = (value,) if isinstance(value, str) else value or ()
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{spec.name} takes text, once or several times; found {value!r}")
    return tuple(items)


def _parse_size(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
