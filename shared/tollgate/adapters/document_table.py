"""A DynamoDB table of documents: items with nested maps and lists, as people edit them in the console."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from tollgate.adapters.aws import AwsError, from_dynamo, to_dynamo
from tollgate.adapters.http import UpstreamError
from tollgate.ports import PolicyUnavailable

Item = dict[str, Any]

MAX_ACTIONS = 100
"""Per TransactWriteItems: DynamoDB's limit."""


class Client(Protocol):
    """`AwsClient`, as far as it is used here."""

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]: ...


class ConditionFailed(Exception):
    """The write's condition does not hold: somebody else was first."""


class DocumentTable:
    """One table whose key is the text attribute `key`. Failures are raised as `PolicyUnavailable`."""

    def __init__(self, client: Client, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self._client = client

    async def get(self, key: str) -> Item | None:
        """The item, read consistently."""
        payload = {"TableName": self.name, "Key": {self.key: {"S": key}}, "ConsistentRead": True}
        found = (await self._call("GetItem", payload, retry=True)).get("Item")
        return _decode(found) if found else None

    async def scan(self, start: str | None = None, page: int = 0) -> AsyncIterator[Item]:
        """Every item, read consistently, in the table's own order; after the key `start`, `page` items a call."""
        payload: dict[str, Any] = {"TableName": self.name, "ConsistentRead": True}
        if page:
            payload["Limit"] = page
        if start is not None:
            payload["ExclusiveStartKey"] = {self.key: {"S": start}}
        while True:
            answer = await self._call("Scan", payload, retry=True)
            for item in answer.get("Items", []):
                yield _decode(item)
            if not answer.get("LastEvaluatedKey"):
                return
            payload["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def put_action(self, item: Mapping[str, Any], condition: str = "", **values: Any) -> dict[str, Any]:
        """A Put for `transact`, or the payload of `put`; ``:name`` in the condition stands for `values`' name."""
        put: dict[str, Any] = {"TableName": self.name, "Item": encode(item)}
        if condition:
            put["ConditionExpression"] = condition
        if values:
            put["ExpressionAttributeValues"] = {f":{name}": to_dynamo(value) for name, value in values.items()}
        return put

    def delete_action(self, key: str) -> dict[str, Any]:
        return {"TableName": self.name, "Key": {self.key: {"S": key}}}

    async def put(self, item: Mapping[str, Any], condition: str = "", **values: Any) -> None:
        """Raises `ConditionFailed`."""
        await self._call("PutItem", self.put_action(item, condition, **values))

    async def update(self, action: Mapping[str, Any]) -> None:
        """Raises `ConditionFailed`."""
        await self._call("UpdateItem", dict(action))

    def update_action(
        self, key: str, changed: Mapping[str, Any], *, if_version: Any, removed: Sequence[str] = ()
    ) -> dict[str, Any]:
        """An Update for `transact`: sets and removes attributes, if the item exists and its `version` is still this
        one (None: it has none)."""
        names = {f"#{i}": name for i, name in enumerate([*changed, *removed])}
        values = {f":{i}": to_dynamo(value) for i, value in enumerate(changed.values())}
        update = "SET " + ", ".join(f"#{i} = :{i}" for i in range(len(changed)))
        if removed:
            update += " REMOVE " + ", ".join(f"#{len(changed) + i}" for i in range(len(removed)))
        names |= {"#key": self.key, "#version": "version"}
        if if_version is None:
            condition = "attribute_exists(#key) AND attribute_not_exists(#version)"
        else:
            condition = "attribute_exists(#key) AND #version = :version"
            values[":version"] = to_dynamo(if_version)
        return {
            "TableName": self.name,
            "Key": {self.key: {"S": key}},
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }

    async def transact(self, actions: list[dict[str, Any]]) -> None:
        """All of ``{"Put": …}``, ``{"Update": …}`` and ``{"Delete": …}``, or none. Raises `ConditionFailed`."""
        payload = {"TransactItems": actions, "ClientRequestToken": str(uuid.uuid4())}
        await self._call("TransactWriteItems", payload, retry=True)

    async def _call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        try:
            return await self._client.call(operation, payload, retry=retry)
        except AwsError as error:
            if error.code in ("ConditionalCheckFailedException", "TransactionCanceledException"):
                codes = {reason.get("Code") for reason in error.body.get("CancellationReasons") or []}
                if codes <= {"None", "ConditionalCheckFailed", "TransactionConflict"}:
                    raise ConditionFailed from None
            if error.code == "ResourceNotFoundException":
                hint = "deploy the stack first, or correct TOLLGATE_POLICY_TABLE and TOLLGATE_TENANTS_TABLE"
                raise PolicyUnavailable(f"there is no table {self.name!r}: {hint}") from error
            raise PolicyUnavailable(f"DynamoDB: {operation} on {self.name}: {error}") from error
        except UpstreamError as error:
            raise PolicyUnavailable(f"DynamoDB cannot be reached: {error}") from error


def encode(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_dynamo(value) for name, value in item.items()}


def _decode(item: Mapping[str, Any]) -> Item:
    return {name: from_dynamo(value) for name, value in item.items()}
