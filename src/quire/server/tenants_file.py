"""Reading the tenants file: YAML, strictly. What is wrong is said with its line and field, and never with a key.

    defaults: {requests_per_minute: 600}
    tiers:
      free: {weight: 1, tokens_per_minute: 20000, priority_ceiling: 0}
      premium: {weight: 4, model: large}
    tenants:
      - {name: acme, tier: premium, keys: ["sha256:9f86..."], daily_token_budget: 5000000}

A tenant's own setting beats its tier's, which beats the defaults. docs/tenants.md describes the settings.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from quire.base.errors import ConfigError
from quire.base.tenancy import Tenant

MAX_TENANTS = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SETTING = re.compile(r"[a-z_]{1,32}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_QUOTED = re.compile(r"(?<=')[^']{2,}(?=')")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class TenantsFile:
    """What the file says: the tenants by name, and whose key has which SHA-256 digest."""

    tenants: dict[str, Tenant]
    owners: dict[bytes, str]


def read_tenants(text: str) -> TenantsFile:
    """The tenants of a file's text.

    Raises:
        ConfigError: naming the line and the field that is wrong, and what is allowed there.
    """
    try:
        root = yaml.SafeLoader(text).get_single_node()
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = _QUOTED.sub("...", getattr(error, "problem", None) or "unreadable")  # the file holds keys
        raise ConfigError(f"{where}not valid YAML: {problem}") from None
    if root is None:
        raise ConfigError("the file is empty; it needs a list named tenants")
    sections = _mapping(root, "the file", ("defaults", "tiers", "tenants"))
    defaults = _settings(sections.get("defaults"), "defaults")
    tiers = {name: _settings(node, f"tiers.{name}") for name, node in _named(sections.get("tiers"), "tiers")}
    tenants: dict[str, Tenant] = {}
    owners: dict[bytes, str] = {}
    for node, where in _items(sections.get("tenants"), "tenants"):
        tenant, digests = _tenant(node, where, defaults, tiers)
        if tenant.name in tenants:
            raise _wrong(node, f"{where}.name", f"{tenant.name!r} stands twice")
        tenants[tenant.name] = tenant
        for digest in digests:
            if digest in owners:
                raise _wrong(node, f"{where}.keys", f"a key that {owners[digest]} has already; a key has one owner")
            owners[digest] = tenant.name
    if not tenants:
        raise ConfigError("the file has no tenants; it needs a list named tenants with at least one")
    if len(tenants) > MAX_TENANTS:
        raise ConfigError(f"the file has {len(tenants)} tenants; at most {MAX_TENANTS} are allowed")
    return TenantsFile(tenants, owners)


def key_digest(key: str) -> bytes:
    """SHA-256 of a key; of one written `sha256:<64 hexadecimal digits>`, the digest it gives."""
    given = _DIGEST.fullmatch(key)
    return bytes.fromhex(given[1]) if given else hashlib.sha256(key.encode()).digest()


def _tenant(
    node: yaml.Node, where: str, defaults: dict[str, Any], tiers: dict[str, dict[str, Any]]
) -> tuple[Tenant, list[bytes]]:
    fields = _mapping(node, where, ("name", "keys", "tier", *_SETTINGS))
    if "name" not in fields:
        raise _wrong(node, where, "found no name")
    name = _text(fields["name"], f"{where}.name")
    if not _NAME.fullmatch(name):
        raise _wrong(fields["name"], f"{where}.name", "allowed: letters, digits, `.`, `_` and `-`, at most 64")
    tier = _text(fields["tier"], f"{where}.tier") if "tier" in fields else None
    if tier is not None and tier not in tiers:
        known = ", ".join(tiers) or "none"
        raise _wrong(fields["tier"], f"{where}.tier", f"no such tier; the file has: {known}")
    own = _read_settings(fields, where)
    settings = {**defaults, **(tiers[tier] if tier is not None else {}), **own}
    tenant = Tenant(name=name, tier=tier, **settings)
    if tenant.model is not None and tenant.models and tenant.model not in tenant.models:
        raise _wrong(node, f"{where}.model", "not among the tenant's models")
    keys = [(item, _key(item, at)) for item, at in _items(fields.get("keys"), f"{where}.keys")]
    return tenant, [digest for _, digest in keys]


def _key(node: yaml.Node, where: str) -> bytes:
    """The digest of a key; messages never show it."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        raise _wrong(node, where, "a key is text; put it in quotes")
    key = str(node.value)
    if not key or key != key.strip() or not key.isprintable():
        raise _wrong(node, where, "a key is printable text without blanks around it")
    if key.startswith("sha256:") and not _DIGEST.fullmatch(key):
        raise _wrong(node, where, "sha256: is followed by 64 hexadecimal digits")
    return key_digest(key)


def _count(node: yaml.Node, where: str) -> int:
    value = _scalar(node)
    if type(value) is not int or not 1 <= value <= 2**53:
        raise _wrong(node, where, f"found {_shown(value)}; allowed: a whole number from 1")
    return value


def _priority(node: yaml.Node, where: str) -> int:
    value = _scalar(node)
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise _wrong(node, where, f"found {_shown(value)}; allowed: a whole number of 32 bits (lower runs earlier)")
    return value


def _positive(node: yaml.Node, where: str) -> float:
    value = _scalar(node)
    if type(value) not in (int, float) or not 0 < value < math.inf or not 1e-6 <= value <= 1e9:
        raise _wrong(node, where, f"found {_shown(value)}; allowed: a number from 1e-6 to 1e9")
    return float(value)


def _flag(node: yaml.Node, where: str) -> bool:
    value = _scalar(node)
    if type(value) is not bool:
        raise _wrong(node, where, f"found {_shown(value)}; allowed: true or false")
    return value


def _text(node: yaml.Node, where: str) -> str:
    value = _scalar(node)
    if not isinstance(value, str) or not value or len(value) > 256:
        raise _wrong(node, where, f"found {_shown(value)}; allowed: text of at most 256 characters")
    return value


def _names(node: yaml.Node, where: str) -> tuple[str, ...]:
    found = tuple(_text(item, at) for item, at in _items(node, where))
    if not found:
        raise _wrong(node, where, "an empty list; name at least one model, or leave it out to allow all")
    return found


_SETTINGS: dict[str, Callable[[yaml.Node, str], Any]] = {
    "weight": _positive,
    "priority": _priority,
    "priority_ceiling": _priority,
    "requests_per_minute": _count,
    "tokens_per_minute": _count,
    "max_concurrent_requests": _count,
    "daily_token_budget": _count,
    "request_timeout": _positive,
    "models": _names,
    "model": _text,
    "isolates_cache": _flag,
}
"""How each setting is read; `Tenant` has a field of every name."""


def _settings(node: yaml.Node | None, where: str) -> dict[str, Any]:
    """The settings of the defaults or of a tier."""
    return {} if node is None else _read_settings(_mapping(node, where, tuple(_SETTINGS)), where)


def _read_settings(fields: dict[str, yaml.Node], where: str) -> dict[str, Any]:
    return {name: _SETTINGS[name](node, f"{where}.{name}") for name, node in fields.items() if name in _SETTINGS}


def _named(node: yaml.Node | None, where: str) -> Iterator[tuple[str, yaml.Node]]:
    """The entries of a mapping whose names are the user's."""
    for name, entry in ({} if node is None else _mapping(node, where, None)).items():
        if not _NAME.fullmatch(name):
            raise _wrong(entry, f"{where}.{name[:64]}", "allowed: letters, digits, `.`, `_` and `-`, at most 64")
        yield name, entry


def _mapping(node: yaml.Node, where: str, known: tuple[str, ...] | None) -> dict[str, yaml.Node]:
    """A mapping's entries by name; `known` are the names it may have, None for any."""
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(node, where, "allowed: `name: value` entries")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = _scalar(key)
        if not isinstance(name, str) or (known is not None and name not in known):
            # A key in the wrong place is not repeated: it may end up in a log.
            shown = f" {name}" if isinstance(name, str) and _SETTING.fullmatch(name) else ""
            raise _wrong(key, where, f"unknown setting{shown}; allowed: {', '.join(known or ('a name',))}")
        if name in found:
            raise _wrong(key, f"{where}.{name[:64]}", "stands twice")
        found[name] = value
    return found


def _items(node: yaml.Node | None, where: str) -> Iterator[tuple[yaml.Node, str]]:
    """A list's items with their names for messages; nothing stands for an empty list."""
    if node is None:
        return
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong(node, where, "allowed: a list")
    for index, item in enumerate(node.value):
        yield item, f"{where}[{index}]"


def _scalar(node: yaml.Node) -> Any:
    """A plain value; what is none, or is no value of its type, stands for itself as wrong."""
    if not isinstance(node, yaml.ScalarNode):
        return _MISSING
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        return _MISSING


def _shown(value: Any) -> str:
    """A wrong value for a message: numbers as they are, of text only that it is text."""
    return "no plain value" if value is _MISSING else "text" if isinstance(value, str) else repr(value)[:64]


def _wrong(node: yaml.Node, where: str, what: str) -> ConfigError:
    return ConfigError(f"line {node.start_mark.line + 1}: {where}: {what}")
