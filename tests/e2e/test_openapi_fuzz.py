"""Requests drawn from the server's own OpenAPI description: every answer is one that the description promises."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = pytest.mark.slow

NUM_REQUESTS = 2_000
SMALL = ("--max-model-len", "128", "--kv-cache-memory-bytes", "8MiB")

profile = settings(
    database=None,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schemathesis() -> Any:
    """The package, whose own dependencies warn on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis

        return schemathesis


@pytest.fixture
def server(start_server: Any, tmp_path: Any) -> Iterator[Any]:
    yield start_server(*SMALL, "--files-dir", str(tmp_path))


@pytest.mark.filterwarnings("ignore:::schemathesis", "ignore:::jsonschema")
def test_two_thousand_requests_from_the_description_get_described_answers(schemathesis, server):
    """S127: no 5xx, no undocumented status or content type, bodies as described, over every operation."""
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_dict(httpx.get(f"{server.url}/openapi.json").raise_for_status().json())
    operations = [result.ok() for result in schema.get_all_operations()]
    varied = [entry for entry in operations if entry.body or entry.query or entry.path_parameters]
    each = -(-NUM_REQUESTS // len(varied))
    statuses: collections.Counter[int] = collections.Counter()
    for operation in operations:

        @settings(profile, max_examples=each)
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "quire-demo"  # to get beyond the answer that there is no such model
            response = case.call(base_url=server.url)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=wanted)

        send()
    assert statuses.total() >= NUM_REQUESTS, statuses
    assert statuses[200] and statuses[400], statuses
    assert server.process.poll() is None
