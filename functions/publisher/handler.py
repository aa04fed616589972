"""Edits of the tables of policy, tenants and API keys in (DynamoDB Streams), new versions out to the store, and every
edit to the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tollgate.adapters import telemetry
from tollgate.adapters.aws import from_dynamo
from tollgate.domain.changes import Table
from tollgate.domain.policy_document import PolicyErrors
from tollgate.services.audit import Edit, note
from tollgate.services.publish import Edits, Published, TenantEdit, publish

TABLES: Mapping[str, Table] = {"id": "policy", "tenant": "tenants", "key_id": "keys"}
"""By their keys."""


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """What was published. Raises when a table or the store cannot be reached, and the stream delivers again."""
    done, noted = asyncio.run(_publish(event))
    telemetry.log("INFO", "published", policy=done.policy, tenants=done.tenants, rejected=done.rejected, noted=noted)
    return {"policy": done.policy, "tenants": done.tenants, "rejected": done.rejected}


def edits(event: Mapping[str, Any]) -> Edits:
    """What a stream event says; the snapshot's own changes and items that are no tenants are passed over."""
    found = Edits()
    for record in event.get("Records", ()):
        change = record["dynamodb"]
        keys = _image(change["Keys"])
        if "id" in keys:
            found.policy |= keys["id"] != "snapshot"
        elif "#" not in keys.get("tenant", "#"):
            before, after = _image(change.get("OldImage")), _image(change.get("NewImage"))
            found.tenants.append(TenantEdit(keys["tenant"], before or None, after or None))
    return found


def audited(event: Mapping[str, Any]) -> list[Edit]:
    """Every edit of an item, for the audit log; the snapshot is nobody's edit, nor is an end that DynamoDB keeps."""
    found: list[Edit] = []
    for record in event.get("Records", ()):
        change = record["dynamodb"]
        ((key, item),) = _image(change["Keys"]).items()
        expired = (record.get("userIdentity") or {}).get("principalId") == "dynamodb.amazonaws.com"
        if (key, item) == ("id", "snapshot") or expired:
            continue
        ts_us = int(float(change["ApproximateCreationDateTime"]) * 1_000_000)
        before, after = _image(change.get("OldImage")), _image(change.get("NewImage"))
        found.append(Edit(record["eventID"], ts_us, TABLES[key], item, before, after))
    return found


async def _publish(event: Mapping[str, Any]) -> tuple[Published, int]:
    """Publishes and notes side by side: neither is kept from its work where the other cannot do its own."""
    from tollgate.bootstrap import publisher

    async with publisher() as (tables, store, log):
        work = publish(edits(event), tables, store, _alarm), note(audited(event), tables, log)
        published, noted = await asyncio.gather(*work, return_exceptions=True)
    if isinstance(published, BaseException):
        raise published
    if isinstance(noted, BaseException):
        raise noted
    return published, noted


def _alarm(what: str, errors: PolicyErrors) -> None:
    problems = [problem.as_dict() for problem in errors.problems]
    name = "PolicyRejected" if what == "policy" else "TenantRejected"
    message = "an edit is wrong and was not published; what was in force stays so"
    metric = telemetry.emf("Tollgate", {"service": telemetry.service()}, **{name: 1})
    telemetry.log("ERROR", message, edited=what, problems=problems, **metric)


def _image(image: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: from_dynamo(value) for name, value in (image or {}).items()}
