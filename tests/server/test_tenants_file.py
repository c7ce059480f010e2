"""The tenants file is read strictly, and what is wrong is said without showing a key."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from quire.base.errors import ConfigError
from quire.base.tenancy import Tenant
from quire.server import tenants_file
from quire.server.tenants_file import read_tenants

SECRET = "sk-0123456789abcdef"


def test_a_tenants_own_setting_beats_its_tiers_which_beats_the_defaults() -> None:
    """S114: tier to model and limits."""
    digest = hashlib.sha256(b"other").hexdigest()
    read = read_tenants(
        f"""
defaults: {{requests_per_minute: 600, weight: 2}}
tiers:
  free: {{weight: 1, tokens_per_minute: 20000, priority_ceiling: 0, model: small}}
tenants:
  - {{name: acme, tier: free, keys: [{SECRET}, "sha256:{digest}"], tokens_per_minute: 5, isolates_cache: true}}
  - name: plain
    models: [small, large]
"""
    )
    acme = Tenant(
        name="acme", tier="free", weight=1.0, tokens_per_minute=5, priority_ceiling=0, model="small",
        requests_per_minute=600, isolates_cache=True,
    )  # fmt: skip
    assert read.tenants["acme"] == acme
    assert read.tenants["plain"] == Tenant(name="plain", weight=2.0, requests_per_minute=600, models=("small", "large"))
    assert read.owners == {hashlib.sha256(key).digest(): "acme" for key in (SECRET.encode(), b"other")}


def test_every_field_of_a_tenant_can_be_set() -> None:
    fields = {spec.name for spec in dataclasses.fields(Tenant)}
    assert set(tenants_file._SETTINGS) == fields - {"name", "tier"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("- 1", "line 1: the file"),
        ("tenants: []", "no tenants"),
        ("tenants:\n- name: a\n  weight: .nan", r"line 3: tenants\[0\].weight: found nan"),
        ("tenants:\n- name: a\n  weight: -1", r"line 3: tenants\[0\].weight: found -1"),
        ("tenants:\n- name: a\n  weight: .inf", "weight: found inf"),
        ("tenants:\n- name: a\n  weight: true", "weight: found True"),
        ("tenants:\n- name: a\n  weight: [1]", "weight: found no plain value"),
        ("tenants:\n- name: a\n  tokens_per_minute: 0", r"line 3: tenants\[0\].tokens_per_minute: found 0"),
        ("tenants:\n- name: a\n  requests_per_minute: 1.5", "found 1.5; allowed: a whole number from 1"),
        ("tenants:\n- name: a\n  priority: low", "priority: found text"),
        ("tenants:\n- name: a\n  wieght: 1", "line 3: .* unknown setting wieght; allowed: name, keys, tier, weight"),
        ("tenants:\n- name: a\n  <<: {weight: 2}", "line 3: .* unknown setting"),
        ("tenants:\n- name: a\n  weight: 1\n  weight: 2", "line 4: .*weight: stands twice"),
        ("tenants:\n- name: a\n- name: a", "line 3: .*'a' stands twice"),
        ("tenants:\n- keys: [k]", "line 2: .* found no name"),
        ("tenants:\n- name: a/b", "line 2: .*allowed: letters"),
        ("tenants:\n- {name: a, tier: gold}", "no such tier; the file has: none"),
        ("tiers: {a b: {}}\ntenants: [{name: a}]", "tiers.a b: allowed: letters"),
        ("tenants:\n- {name: a, model: x, models: [y]}", "not among the tenant's models"),
        ("tenants:\n- {name: a, models: []}", "an empty list"),
        ("tenants:\n- {name: a, isolates_cache: 1}", "found 1; allowed: true or false"),
        ("tenants:\n- name: a\n  keys: 5", r"line 3: tenants\[0\].keys: allowed: a list"),
        ("tenants:\n- name: a\n  keys: [12345]", r"line 3: tenants\[0\].keys\[0\]: a key is text"),
        ("tenants: [", "not valid YAML"),
        ("teanants: []", "unknown setting teanants; allowed: defaults, tiers, tenants"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_field(text, message) -> None:
    """D11: unknown settings, NaN, negative numbers and duplicates are refused, not guessed at."""
    with pytest.raises(ConfigError, match=message):
        read_tenants(text)


@pytest.mark.parametrize(
    "text",
    [
        f"tenants:\n- {{name: a, keys: [{SECRET}]}}\n- {{name: b, keys: [{SECRET}]}}",
        f"tenants:\n- {{name: a, {SECRET}: 1}}",
        f"tenants:\n- {{name: a, keys: {SECRET}}}",
        f"tenants:\n- {{name: a, weight: {SECRET}}}",
        f"tenants:\n- {{name: a, keys: ['sha256:{SECRET}']}}",
        f"tenants:\n- {{name: a, keys: [' {SECRET}']}}",
        f"tenants:\n- {{name: a, keys: [*{SECRET}]}}",
        f"tenants:\n- {{name: a, tier: {SECRET}}}",
        f"{SECRET}: 1",
    ],
)
def test_no_message_repeats_a_key(text) -> None:
    """SEC-30: what is wrong goes to the log, and keys do not."""
    with pytest.raises(ConfigError) as raised:
        read_tenants(text)
    assert SECRET not in str(raised.value)
