"""Results as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from quire.conformance.check import MUST, Check
from quire.conformance.outcome import Result
from quire.conformance.runner import Report


def result_line(result: Result) -> str:
    """One line of the table, and a second one for what a result has to say."""
    first = f"{result.line:>3}  {result.tag}  {result.status:<7}  {result.sentence}"
    return f"{first}\n{'':17}{result.detail}" if result.detail else first


def score_lines(report: Report) -> str:
    """The score, and what failed."""
    score = report.score
    failed = [result.line for result in report.results if result.status == "failed" and result.tag == MUST]
    lines = [
        f"{report.base_url}, model {report.model}:",
        f"  must    {score.must_passed} of {score.must_run} passed"
        + (f"; failed: {', '.join(failed)}" if failed else ""),
        f"  should  {score.should_passed} of {score.should_run} passed",
        f"  skipped {score.skipped}",
    ]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Everything, the score included."""
    content = dataclasses.asdict(report) | {"score": dataclasses.asdict(report.score)}
    return json.dumps(content | {"is_conformant": report.score.is_conformant}, indent=2, ensure_ascii=False)


def list_lines(checks: Iterable[tuple[str, Check]]) -> str:
    """Every line without a server: section, line, tag, sentence."""
    lines = []
    for section, check in checks:
        slow = "  (--slow)" if check.is_slow else ""
        lines.append(f"{section:<9}  {check.line:>3}  {check.tag}  {check.sentence}{slow}")
    return "\n".join(lines)


def list_json(checks: Iterable[tuple[str, Check]]) -> str:
    """The same for programs."""
    found = [
        {"section": section, "line": check.line, "tag": check.tag, "sentence": check.sentence, "is_slow": check.is_slow}
        for section, check in checks
    ]
    return json.dumps(found, indent=2, ensure_ascii=False)
