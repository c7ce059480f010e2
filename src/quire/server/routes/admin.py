"""`/admin`: tenants and what they used, and reading their file again. There only with `--admin-key`, and behind it."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import InvalidRequestError
from quire.base.tenancy import Account
from quire.server.admission import Admission
from quire.server.openapi import json_operation
from quire.server.state import state_of

TENANTS_PATH = "/admin/tenants"
RELOAD_PATH = "/admin/tenants/reload"


def add_routes(router: APIRouter) -> None:
    """Register the endpoints."""
    router.add_api_route(TENANTS_PATH, list_tenants, methods=["GET"], **json_operation(None, None))
    router.add_api_route(RELOAD_PATH, reload_tenants, methods=["POST"], **json_operation(None, None))


async def list_tenants(request: Request) -> Response:
    """Every tenant with its limits and what it used; no keys, and no digests of keys."""
    state = state_of(request)
    now = state.tenants.clock()
    names = state.tenants.names()
    accounts = state.tenants.accounts
    return _json({"tenants": [_describe(accounts[name], state.admission, now) for name in names]})


async def reload_tenants(request: Request) -> Response:
    """Read the tenants file again now; where it is wrong the answer says so, and the tenants stay as they were."""
    tenants = state_of(request).tenants
    problem = await tenants.reload(force=True)
    if problem is not None:
        raise InvalidRequestError(f"the tenants stay as they are: {problem}", code="invalid_tenants_file")
    return _json({"tenants": len(tenants.names())})


def _describe(account: Account, admission: Admission, now: float) -> dict[str, Any]:
    tenant, meter = account.tenant, admission.meter(account.tenant.name)
    limits = {
        name: {"limit": limit.limit, "remaining": limit.remaining, "reset_seconds": round(limit.reset, 3)}
        for name, limit in account.limits(now).items()
    }
    return {
        **{name: getattr(tenant, name) for name in tenant.__dataclass_fields__},
        "usage": {
            "requests": account.num_requests,
            "refused": account.num_refused,
            "prompt_tokens": account.prompt_tokens,
            "output_tokens": account.output_tokens,
            "open_requests": account.num_concurrent,
            "waiting_requests": meter.num_waiting,
            "waiting_prompt_tokens": meter.num_tokens,
            "tokens_today": account.used_today,
            "per_minute": limits,
        },
    }


def _json(payload: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(payload), headers=headers, media_type="application/json")
