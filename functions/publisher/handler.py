"""Edits of the policy and tenants tables in (DynamoDB Streams), new versions out to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tollgate.adapters import telemetry
from tollgate.adapters.aws import from_dynamo
from tollgate.domain.policy_document import PolicyErrors
from tollgate.services.publish import Edits, Published, TenantEdit, publish


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """What was published. Raises when a table or the store cannot be reached, and the stream delivers again."""
    done = asyncio.run(_publish(edits(event)))
    telemetry.log("INFO", "published", policy=done.policy, tenants=done.tenants, rejected=done.rejected)
    return {"policy": done.policy, "tenants": done.tenants, "rejected": done.rejected}


def edits(event: Mapping[str, Any]) -> Edits:
    """What a stream event says; the snapshot's own changes and items that are no tenants are passed over."""
    found = Edits()
    for record in event.get("Records", ()):
        change = record["dynamodb"]
        keys = _image(change["Keys"])
        if "id" in keys:
            found.policy |= keys["id"] != "snapshot"
        elif "#" not in keys["tenant"]:
            before, after = _image(change.get("OldImage")), _image(change.get("NewImage"))
            found.tenants.append(TenantEdit(keys["tenant"], before or None, after or None))
    return found


async def _publish(edited: Edits) -> Published:
    from tollgate.bootstrap import publisher

    async with publisher() as (tables, store):
        return await publish(edited, tables, store, _alarm)


def _alarm(what: str, errors: PolicyErrors) -> None:
    problems = [problem.as_dict() for problem in errors.problems]
    name = "PolicyRejected" if what == "policy" else "TenantRejected"
    message = "an edit is wrong and was not published; what was in force stays so"
    metric = telemetry.emf("Tollgate", {"service": telemetry.service()}, **{name: 1})
    telemetry.log("ERROR", message, edited=what, problems=problems, **metric)


def _image(image: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: from_dynamo(value) for name, value in (image or {}).items()}
