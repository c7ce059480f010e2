"""JSON text of a string that is written down piece by piece."""

from __future__ import annotations

import json


def escaped(text: str) -> str:
    """`text` as it stands between the quotation marks of a JSON string; other letters than ASCII stay readable."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def quoted(text: str) -> str:
    """`text` as a JSON string."""
    return json.dumps(text, ensure_ascii=False)
