"""Refreshes the generated parts of the documentation: models, settings, routes, fields, and the tests of each row.

Everything between `<!-- generated: NAME -->` and `<!-- end -->` in README.md and docs/ is written here; everything else
by people. `tests/test_house.py` fails when a generated part that comes from the sources is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from field_tables import endpoints_table, fields_tables
from quire.base.config import PRESETS
from quire.cli.flags import ENGINE_PARTS, SERVER_PARTS, flag_specs
from quire.models.encoder_families import ENCODERS
from quire.models.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
ROW_ID = re.compile(r"\b(?:S|SEC-|REL-)\d+\b")
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROW = re.compile(r"^\| ((?:S|SEC-|REL-)\d+) \| (.*?) \|.*\|$")
MAX_TESTS_PER_ROW = 4
"""A row names the tests nearest to a user first, and not every one."""
_NEAREST_FIRST = ("e2e", "engine", "models", "server")
"""Folders of tests/ that drive more than one package, in the order in which a row names their tests."""


def models_table() -> str:
    """The native families with their architectures."""
    families: dict[str, list[str]] = defaultdict(list)
    for architecture, entry in (FAMILIES | ENCODERS).items():
        families[entry.family].append(f"`{architecture}`")
    lines = ["| family | `architectures` in config.json |", "|---|---|"]
    return "\n".join(lines + [f"| {family} | {', '.join(names)} |" for family, names in families.items()]) + "\n"


def settings_table() -> str:
    """Every setting with its flag, default and sentence."""
    lines: list[str] = []
    for part in (ENGINE_PARTS | SERVER_PARTS).values():
        title = (part.__doc__ or "").splitlines()[0].rstrip(".")
        lines += [f"### {title}", "", "| setting | default | |", "|---|---|---|"]
        for spec in flag_specs({"": part}).values():
            default = spec.field.default
            shown = (
                ""
                if default in (None, (), "")
                else f"`{str(default).lower() if default in (True, False) else default}`"
            )
            names = spec.spellings if spec.is_flag else [spec.field.name]
            flags = "<br>".join(f"`{name}`" for name in names)
            lines.append(f"| {flags} | {shown} | {_sentence(spec.field)} |")
        lines.append("")
    lines += ["### Presets", "", "| `--preset` | sets |", "|---|---|"]
    lines += [
        f"| `{name}` | {', '.join(f'{key} {value}' for key, value in values.items())} |"
        for name, values in PRESETS.items()
    ]
    return "\n".join(lines) + "\n"


def _sentence(field: dataclasses.Field[object]) -> str:
    choices = field.metadata["choices"]
    allowed = f" One of {', '.join(map(str, choices))}." if choices else ""
    return (str(field.metadata["help"]) + allowed).replace("|", "\\|")


def tests_by_row(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """`path::name` of the tests whose docstring names a row."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py"), key=lambda path: (_distance(path.relative_to(folder)), path)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for row in dict.fromkeys(ROW_ID.findall(ast.get_docstring(node) or "")):
                    found[row].append(f"{path.relative_to(folder.parent).as_posix()}::{node.name}")
    return found


def _distance(path: Path) -> int:
    """How far a test file, seen from tests/, is from what a user meets."""
    top = path.parts[0]
    return _NEAREST_FIRST.index(top) if top in _NEAREST_FIRST else len(_NEAREST_FIRST)


def refresh_rows(text: str) -> str:
    """The table of rows with its last column written anew."""
    found = tests_by_row()

    def row(line: str) -> str:
        match = _ROW.match(line)
        if match is None:
            return line
        tests = found.get(match[1], [])
        shown = [f"`{test}`" for test in tests[:MAX_TESTS_PER_ROW]]
        more = [f"and {len(tests) - MAX_TESTS_PER_ROW} more"] if len(tests) > MAX_TESTS_PER_ROW else []
        return f"| {match[1]} | {match[2]} | {'<br>'.join(shown + more)} |"

    return "\n".join(map(row, text.split("\n")))


GENERATORS: dict[str, Callable[[], str]] = {
    "models": models_table,
    "settings": settings_table,
    "endpoints": endpoints_table,
    "fields": fields_tables,
}


def refresh(text: str) -> str:
    """A document with its generated blocks written anew; raises KeyError for a block nobody generates."""
    return _BLOCK.sub(lambda match: match[1] + GENERATORS[match[2]]() + match[3], text)


def main() -> int:
    """Rewrite the documents that changed and name them."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = refresh_rows(refresh(before)) if path.name == "rows.md" else refresh(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"refreshed {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
