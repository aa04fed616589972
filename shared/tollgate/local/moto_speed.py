"""moto's DynamoDB without its detours: the same answers for a third of the work.

A local stack with some hundred ledger entries spends most of its processor time in a few places of moto's, none of
which decides anything: a query looks through every item of the table and sorts it; strings are compared as if they
might be numbers or sets; an update's expression is parsed for each call, copied by pickle's protocol, and walked ten
times with abstract base classes asked at each node; each attribute of an answer is searched under sixty names; and
the service that is meant is looked for in the file system.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

EXPRESSIONS = 1024
"""So many update expressions are kept parsed: programs have few, and each is some kilobytes."""


def install() -> None:
    """Change moto in this process. Doing it twice changes nothing."""
    types: Any = importlib.import_module("moto.dynamodb.models.dynamo_type").DynamoType
    if types.__eq__ is _equal:
        return
    _compare_strings_as_strings(types)
    _query_one_partition(importlib.import_module("moto.dynamodb.models.table").Table)
    _parse_each_expression_once(importlib.import_module("moto.dynamodb.parsing.expressions").UpdateExpressionParser)
    _walk_without_asking(importlib.import_module("moto.dynamodb.parsing.ast_nodes"))
    _write_plain_attributes_plainly(importlib.import_module("moto.core.serialize").JSONSerializer)
    _find_the_way_once()


def _compare_strings_as_strings(types: Any) -> None:
    general: Callable[[Any], Any] = types.cast_value.fget
    types.cast_value = property(lambda self: self.value if self.type == "S" else general(self))
    types.__eq__ = _equal
    types.__ne__ = lambda self, other: not _equal(self, other)


def _equal(self: Any, other: Any) -> bool:
    if self.type != other.type:
        return False
    return bool(self.value == other.value if self.type == "S" else self.cast_value == other.cast_value)


def _query_one_partition(table: Any) -> None:
    """Table.query filters and sorts what `all_items` gives it; here that is the partition that was asked for."""
    whole = table.query
    signature = inspect.signature(whole)

    @wraps(whole)
    def query(self: Any, *args: Any, **options: Any) -> Any:
        asked = signature.bind(self, *args, **options).arguments
        if self.range_key_attr and asked["hash_key"] is not None and asked.get("index_name") is None:
            partition = self.items.get(asked["hash_key"], {})
            self.all_items = lambda: list(partition.values())
        try:
            return whole(self, *args, **options)
        finally:
            self.__dict__.pop("all_items", None)

    def all_items(self: Any) -> list[Any]:
        if not self.range_key_attr:
            return sorted(self.items.values(), key=lambda item: item.hash_key.cast_value)
        return [
            partition[range_key]
            for hash_key, partition in sorted(self.items.items(), key=lambda entry: entry[0].cast_value)
            for range_key in sorted(partition, key=lambda key: key.cast_value)
        ]

    table.query, table.all_items = query, all_items


def _parse_each_expression_once(parser: Any) -> None:
    """Nobody changes a parsed expression: whoever fills in values does so in a copy."""
    parser.make = lru_cache(EXPRESSIONS)(parser.make)


def _walk_without_asking(nodes: Any) -> None:
    node_type, traverser = nodes.Node, nodes.DepthFirstTraverser
    validators: Any = importlib.import_module("moto.dynamodb.parsing.validators")
    for of_the_whole in (validators.OverlappingPathsValidator, validators.ActionCountValidator):
        of_the_whole.traverse = of_the_whole.process  # it looks at all that is below a node, and was shown every node

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        """The tree below, with leaves shared: they are strings, numbers and values that nobody changes."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.parent = None
        if self.children is not None:
            copy.children = [copied(child, memo) if isinstance(child, node_type) else child for child in self.children]
            for child in copy.children:
                if isinstance(child, node_type):
                    child.parent = copy
        return copy

    def traverse(self: Any, node: Any, child_id: int = -1) -> Any:
        processors = self.__dict__.get("_by_type")
        if processors is None:
            processors = self._by_type = {}
        return walk(self, processors, node, child_id)

    def walk(self: Any, processors: dict[type, Any], node: Any, child_id: int) -> Any:
        kind = type(node)
        try:
            process = processors[kind]
        except KeyError:
            found = (do for wanted, do in self._processing_map().items() if issubclass(kind, wanted))
            process = processors[kind] = next(found, None) if issubclass(kind, node_type) else False
        if process is False:  # what a leaf holds
            return node
        parent = node.parent
        if node.children is not None:
            for position, child in enumerate(node.children):
                self.pre_processing_of_child(node, position)
                walk(self, processors, child, position)
        if process is not None:
            node = process(node)
            node.parent = parent
            if parent:
                parent.children[child_id] = node
        return node

    node_type.__deepcopy__ = copied
    traverser.traverse_node_recursively = traverse


def _write_plain_attributes_plainly(serializer: Any) -> None:
    general = serializer._serialize_type_structure

    def structure(self: Any, serialized: Any, value: Any, shape: Any, key: str) -> None:
        if shape.name == "AttributeValue" and key and type(value) is dict and len(value) == 1:
            [(kind, plain)] = value.items()
            if kind in ("S", "N") and type(plain) is str:
                self._default_serialize(serialized, {kind: plain}, shape, key)
                return
        general(self, serialized, value, shape, key)

    serializer._serialize_type_structure = structure


def _find_the_way_once() -> None:
    """Which service a host means, and which actions it has: asked of the file system and of `inspect` each time."""
    dispatcher: Any = importlib.import_module("moto.moto_server.werkzeug_app").DomainDispatcherApplication
    dispatcher.get_backend_for_host = lru_cache(64)(dispatcher.get_backend_for_host)
    responses: Any = importlib.import_module("moto.core.responses")
    responses.method_names_from_class = lru_cache(64)(responses.method_names_from_class)
