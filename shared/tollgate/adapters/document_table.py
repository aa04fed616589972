"""A DynamoDB table of documents: items with nested maps and lists, as people edit them in the console."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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


class Condition(NamedTuple):
    """A condition of a write, with the names and values that it uses."""

    expression: str
    names: dict[str, str]
    values: dict[str, dict[str, Any]]


def as_read(key: str, item: Mapping[str, Any] | None, fields: Iterable[str]) -> Condition:
    """That the item is still as it was read, as far as `fields` go; that there is still none, if `item` is None.

    Versions alone would not do: whoever edits in the console does not think of them.
    """
    names = {"#k": key}
    if item is None:
        return Condition("attribute_not_exists(#k)", names, {})
    values: dict[str, dict[str, Any]] = {}
    parts = ["attribute_exists(#k)"]
    for i, field in enumerate(fields):
        names[f"#r{i}"] = field
        if field in item:
            values[f":r{i}"] = to_dynamo(item[field])
            parts.append(f"#r{i} = :r{i}")
        else:
            parts.append(f"attribute_not_exists(#r{i})")
    return Condition(" AND ".join(parts), names, values)


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

    async def query(self, index: str, attribute: str, value: str) -> AsyncIterator[Item]:
        """Every item of an index whose key is the text `attribute`. What was written a moment ago may be missing."""
        payload: dict[str, Any] = {
            "TableName": self.name,
            "IndexName": index,
            "KeyConditionExpression": "#k = :v",
            "ExpressionAttributeNames": {"#k": attribute},
            "ExpressionAttributeValues": {":v": {"S": value}},
        }
        while True:
            answer = await self._call("Query", payload, retry=True)
            for item in answer.get("Items", []):
                yield _decode(item)
            if not answer.get("LastEvaluatedKey"):
                return
            payload["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def put_action(self, item: Mapping[str, Any], condition: Condition | None = None) -> dict[str, Any]:
        """A Put for `transact`, or the payload of `put`."""
        return {"TableName": self.name, "Item": encode(item), **_conditional(condition)}

    def delete_action(self, key: str, condition: Condition | None = None) -> dict[str, Any]:
        return {"TableName": self.name, "Key": {self.key: {"S": key}}, **_conditional(condition)}

    async def put(self, item: Mapping[str, Any], condition: Condition | None = None) -> None:
        """Raises `ConditionFailed`."""
        await self._call("PutItem", self.put_action(item, condition))

    async def delete(self, key: str, condition: Condition | None = None) -> None:
        """Raises `ConditionFailed`."""
        await self._call("DeleteItem", self.delete_action(key, condition))

    async def update(self, action: Mapping[str, Any]) -> None:
        """Raises `ConditionFailed`."""
        await self._call("UpdateItem", dict(action))

    def update_action(
        self, key: str, changed: Mapping[str, Any], condition: Condition, *, removed: Sequence[str] = ()
    ) -> dict[str, Any]:
        """An Update for `transact`, or the payload of `update`: sets and removes attributes."""
        names = {f"#{i}": name for i, name in enumerate([*changed, *removed])}
        values = {f":{i}": to_dynamo(value) for i, value in enumerate(changed.values())}
        update = "SET " + ", ".join(f"#{i} = :{i}" for i in range(len(changed)))
        if removed:
            update += " REMOVE " + ", ".join(f"#{len(changed) + i}" for i in range(len(removed)))
        return {
            "TableName": self.name,
            "Key": {self.key: {"S": key}},
            "UpdateExpression": update,
            "ConditionExpression": condition.expression,
            "ExpressionAttributeNames": names | condition.names,
            "ExpressionAttributeValues": values | condition.values,
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
                hint = "deploy the stack first, or correct the TOLLGATE_..._TABLE that names it"
                raise PolicyUnavailable(f"there is no table {self.name!r}: {hint}") from error
            hint = ": is it the right table?" if error.code == "ValidationException" else ""
            raise PolicyUnavailable(f"DynamoDB: {operation} on {self.name}: {error}{hint}") from error
        except UpstreamError as error:
            raise PolicyUnavailable(f"DynamoDB cannot be reached: {error}") from error


def _conditional(condition: Condition | None) -> dict[str, Any]:
    if condition is None:
        return {}
    found: dict[str, Any] = {"ConditionExpression": condition.expression, "ExpressionAttributeNames": condition.names}
    if condition.values:  # an empty mapping is an error to DynamoDB
        found["ExpressionAttributeValues"] = condition.values
    return found


def encode(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_dynamo(value) for name, value in item.items()}


def _decode(item: Mapping[str, Any]) -> Item:
    return {name: from_dynamo(value) for name, value in item.items()}
