"""docs/rows.md keeps its word: every claimed requirement names tests that exist and run."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_YET = {"S46", "S83"}
"""Described in the table, and said there not to exist yet."""
CLAIMED = {
    *(f"S{n}" for n in [*range(1, 54), *range(78, 88), 69, 77, 97, 98, 109, 114, 125, 128]),
    *(f"SEC-{n}" for n in range(1, 36)),
    *(f"REL-{n}" for n in (*range(1, 21), 22)),
} - NOT_YET


def rows() -> dict[str, list[str]]:
    """Row id to the tests the table names."""
    text = (ROOT / "docs" / "rows.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ((?:S|SEC-|REL-)\d+) \| .*? \|(.*)\|$", text, re.MULTILINE)
    assert len(lines) == len(dict(lines)), "a row stands twice"
    return {row: re.findall(r"`([^`]+::[^`]+)`", tests) for row, tests in lines}


@cache
def running_tests(path: str) -> set[str]:
    """Names of the tests of a file that are not skipped whatever the machine."""
    file = ROOT / path
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module_marks = [
        ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)
    ]
    if any(is_skip(mark) for mark in module_marks):
        return set()
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(is_skip(ast.unparse(mark)) for mark in node.decorator_list)
        and not ast.unparse(first_statement(node)).startswith("pytest.skip(")
    }


def is_skip(mark: str) -> bool:
    return bool(re.search(r"mark\.(skip\b(?!if)|xfail)", mark))


def first_statement(node) -> ast.stmt:
    has_doc = ast.get_docstring(node) is not None and len(node.body) > 1
    return node.body[1] if has_doc else node.body[0]


def test_every_claimed_row_has_a_test():
    table = rows()
    missing = sorted(row for row in CLAIMED if not table.get(row))
    assert not missing, (
        f"rows without a test: {', '.join(missing)}; name the id in a test's docstring and run make docs"
    )


def test_every_named_test_exists_and_runs():
    broken = [
        f"{row}: {test}"
        for row, tests in rows().items()
        for test in tests
        if test.split("::")[1] not in running_tests(test.split("::")[0])
    ]
    assert not broken, "missing or skipped tests; run make docs:\n  " + "\n  ".join(broken)


def test_rows_that_do_not_exist_yet_say_so():
    text = (ROOT / "docs" / "rows.md").read_text(encoding="utf-8")
    for row in NOT_YET:
        assert re.search(rf"^\| {row} \| .*not yet", text, re.MULTILINE)
