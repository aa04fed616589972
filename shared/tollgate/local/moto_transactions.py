"""moto's transactions, made fast and right: it copies the whole table once per action, to roll back to the copy.

With some hundred items in the ledger a batch of usage records takes seconds that way, and the whole of DynamoDB waits.
And whoever reads the table's stream goes on reading that of the table that was replaced, where nothing comes any more:
one cancelled transaction, and no later edit was ever published. Here only the items that a transaction names are
copied, and put back in their place if it is cancelled; the stream loses what it was given meanwhile.
"""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace
from typing import Any


def install() -> None:
    """Change moto in this process. Doing it twice changes nothing."""
    models: Any = importlib.import_module("moto.dynamodb.models")
    if isinstance(models.copy, SimpleNamespace):
        return
    whole = models.DynamoDBBackend.transact_write_items

    def transact_write_items(self: Any, transact_items: list[dict[str, Any]]) -> None:
        before = [found for action in transact_items if (found := _named(self, action)) is not None]
        shards = {id(shard): shard for table, *_ in before if (shard := table.stream_shard) is not None}
        lengths = {key: len(shard.items) for key, shard in shards.items()}
        try:
            whole(self, transact_items)
        except Exception:
            for table, hash_key, range_key, item in before:
                _put_back(table, hash_key, range_key, item)
            for key, shard in shards.items():
                del shard.items[lengths[key] :]
            raise

    models.DynamoDBBackend.transact_write_items = transact_write_items
    models.copy = SimpleNamespace(deepcopy=_deepcopy)


def _deepcopy(value: Any) -> Any:
    from moto.dynamodb.models.table import Table

    if isinstance(value, Table):
        return value  # moto "rolls back" to the table itself; its items are put back one by one
    return copy.deepcopy(value)


def _named(backend: Any, action: dict[str, Any]) -> tuple[Any, Any, Any, Any] | None:
    """The table, key and present item that an action names; None if moto will refuse it."""
    from moto.dynamodb.models.dynamo_type import DynamoType

    operation = next(iter(action.values()))
    table = backend.tables.get(operation.get("TableName"))
    if table is None:
        return None
    key = operation.get("Key") or operation.get("Item") or {}
    if any(name not in key for name in table.table_key_attrs):
        return None
    hash_key = DynamoType(key[table.hash_key_attr])
    range_key = DynamoType(key[table.range_key_attr]) if table.range_key_attr else None
    return table, hash_key, range_key, copy.deepcopy(table.get_item(hash_key, range_key))


def _put_back(table: Any, hash_key: Any, range_key: Any, item: Any) -> None:
    if item is None:
        table.delete_item(hash_key, range_key)
    elif range_key is None:
        table.items[hash_key] = item
    else:
        table.items[hash_key][range_key] = item
