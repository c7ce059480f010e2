"""Marks of a request's fields that do less than their names say, beside their types.

The OpenAPI description carries them (`x-effect`, `x-only`), and docs/fields.md is made from that description. Fields
that are always refused at the top of a request belong to no wire type; `server/unsupported.py` has them.
"""

from __future__ import annotations

from msgspec import Meta

EFFECT_KEY = "x-effect"
ONLY_KEY = "x-only"

NO_EFFECT = Meta(description="Accepted without effect.", extra_json_schema={EFFECT_KEY: "none"})
REFUSED = Meta(description="Refused by name; only null is taken.", extra_json_schema={EFFECT_KEY: "refused"})


def only(values: str) -> Meta:
    """The mark of a field of which some values are honoured and others refused; `values` says which, in Markdown."""
    return Meta(description=f"Only {values}; other values are refused.", extra_json_schema={ONLY_KEY: values})
