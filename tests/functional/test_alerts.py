"""Alerts through a running stack: from a call to EventBridge, once, and to `tollgate alert list`."""

from __future__ import annotations

import json
import time
from typing import Any

import boto3

from tests.functional.callers import Callers
from tests.functional.stack import DevStack

WITHIN_S = 60.0
"""Metering, then the next delivery."""


def test_thresholds_reach_the_event_bus_once(stack: DevStack, callers: Callers) -> None:
    events, queue, sqs = bus(callers.environ)
    caller = callers("soft")  # a budget of four requests a day
    for _ in range(4):
        assert caller.chat(max_tokens=1).status == 200
    assert caller.chat(max_tokens=1).status == 402
    found: list[dict[str, Any]] = []
    end = time.monotonic() + WITHIN_S
    while len(found) < 3 and time.monotonic() < end:
        for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            event = json.loads(message["Body"])
            if event["detail"]["tenant"] == caller.tenant:
                found.append(event)
        time.sleep(0.2)
    assert sorted(event["detail"]["threshold"] for event in found) == [0.5, 0.8, 1.0]
    assert {event["source"] for event in found} == {"tollgate"}
    assert {event["detail-type"] for event in found} == {"Tollgate Budget Threshold"}
    assert len({event["detail"]["id"] for event in found}) == 3
    assert {event["detail"]["amount"] for event in found} == {4}
    listed = json.loads(stack.run("alert", "list", "--tenant", caller.tenant, "--json").stdout)["alerts"]
    assert [(alert["threshold"], alert["delivered"]) for alert in sorted(listed, key=lambda a: a["threshold"])] == [
        (0.5, True), (0.8, True), (1.0, True),
    ]  # fmt: skip
    shown = stack.run("alert", "list", "--tenant", caller.tenant).stdout
    assert f"{caller.tenant}: the tenant's budget for" in shown
    assert "has reached 100% (4 requests of 4 requests used)" in shown
    events.remove_targets(Rule="to-queue", Ids=["queue"])


def bus(environ: dict[str, str]) -> tuple[Any, str, Any]:
    """A queue that gets whatever Tollgate puts on the default bus."""
    session = boto3.Session("local", "local", region_name=environ["AWS_REGION"])
    sqs, events = (session.client(name, endpoint_url=environ["AWS_ENDPOINT_URL"]) for name in ("sqs", "events"))
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="to-queue", EventPattern=json.dumps({"source": ["tollgate"]}))
    events.put_targets(Rule="to-queue", Targets=[{"Id": "queue", "Arn": arn}])
    return events, queue, sqs
