"""The ledger's table in this process: as much of DynamoDB as entering uses, exact, and fast enough for 300,000 records.

What DynamoDB itself does is proved on moto and DynamoDB Local (tests/contract); here it is only the ground.
"""

from __future__ import annotations

import re
from typing import Any

from tollgate.adapters.aws import AwsError

Item = dict[str, dict[str, str]]
_TERM = re.compile(r"(#\d+) (?:= )?(:\d+)")


class LedgerTable:
    """A client of a table that is always there."""

    clock_offset_us = 0
    clock_known = True

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self, f"_{operation}")(payload)
        return answer

    def _TransactWriteItems(self, payload: dict[str, Any]) -> dict[str, Any]:
        actions = payload["TransactItems"]
        assert len(actions) <= 100
        keys = [_key(action["Put"]["Item"] if "Put" in action else action["Update"]["Key"]) for action in actions]
        assert len(set(keys)) == len(keys), "one action per item"
        reasons: list[dict[str, Any]] = []
        for key, action in zip(keys, actions, strict=True):
            refused = "Put" in action and not self._holds(self.items.get(key), action["Put"])
            reasons.append({"Code": "ConditionalCheckFailed", "Item": self.items[key]} if refused else {"Code": "None"})
        if any(reason["Code"] != "None" for reason in reasons):
            raise AwsError("TransactionCanceledException", "", 400, {"CancellationReasons": reasons})
        for key, action in zip(keys, actions, strict=True):
            if "Put" in action:
                self.items[key] = action["Put"]["Item"]
            else:
                self._update(key, action["Update"])
        return {}

    def _holds(self, item: Item | None, put: dict[str, Any]) -> bool:
        if put["ConditionExpression"].startswith("attribute_not_exists("):
            return item is None
        found = _TERM.fullmatch(put["ConditionExpression"])
        assert found is not None
        name, value = put["ExpressionAttributeNames"][found[1]], put["ExpressionAttributeValues"][found[2]]
        return item is not None and item.get(name) == value

    def _update(self, key: tuple[str, str], update: dict[str, Any]) -> None:
        item = self.items.setdefault(key, {"pk": {"S": key[0]}, "sk": {"S": key[1]}})
        names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
        adds, _, sets = f" {update['UpdateExpression']}".partition(" SET ")
        for name, value in _TERM.findall(adds):
            total = int(item.get(names[name], {"N": "0"})["N"]) + int(values[value]["N"])
            item[names[name]] = {"N": str(total)}
        for name, value in _TERM.findall(sets):
            item[names[name]] = values[value]

    def _UpdateItem(self, payload: dict[str, Any]) -> dict[str, Any]:
        assert "ConditionExpression" not in payload
        self._update(_key(payload["Key"]), payload)
        return {}

    def _GetItem(self, payload: dict[str, Any]) -> dict[str, Any]:
        item = self.items.get(_key(payload["Key"]))
        return {} if item is None else {"Item": dict(item)}

    def _BatchGetItem(self, payload: dict[str, Any]) -> dict[str, Any]:
        ((table, wanted),) = payload["RequestItems"].items()
        assert len(wanted["Keys"]) <= 100
        found = [self.items[_key(key)] for key in wanted["Keys"] if _key(key) in self.items]
        return {"Responses": {table: [dict(item) for item in found]}}

    def _BatchWriteItem(self, payload: dict[str, Any]) -> dict[str, Any]:
        ((_, requests),) = payload["RequestItems"].items()
        assert len(requests) <= 25
        for request in requests:
            if "PutRequest" in request:
                item = request["PutRequest"]["Item"]
                self.items[_key(item)] = item
            else:
                self.items.pop(_key(request["DeleteRequest"]["Key"]), None)
        return {}

    def _Query(self, payload: dict[str, Any]) -> dict[str, Any]:
        values = list(payload["ExpressionAttributeValues"].values())
        pk, rest = values[0]["S"], [value["S"] for value in values[1:]]
        found = [item for (hash_key, sort_key), item in self.items.items() if hash_key == pk and _in(sort_key, rest)]
        found.sort(key=lambda item: item["sk"]["S"])
        return {"Items": found[: payload.get("Limit", len(found))]}


def _key(item: Item) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"]


def _in(sort_key: str, bounds: list[str]) -> bool:
    return not bounds or (sort_key < bounds[0] if len(bounds) == 1 else bounds[0] <= sort_key <= bounds[1])
