"""moto's DynamoDB without its detours: the same answers for a third of the work.

A local stack with some hundred ledger entries spends most of its processor time in a few places of moto's, none of
which decides anything: a query looks through every item of the table and sorts it; strings are compared as if they
might be numbers or sets; an update's expression is parsed for each call, copied by pickle's protocol, and walked ten
times with abstract base classes asked at each node, its leaves too; errors that nobody sees are written as XML; each
attribute of an answer is searched under sixty names; and the service that is meant is looked for in the file system.
"""

from __future__ import annotations

import importlib
import inspect
import json
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
    _write_no_xml(importlib.import_module("moto.core.exceptions"))
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
    traverser = nodes.DepthFirstTraverser
    validators: Any = importlib.import_module("moto.dynamodb.parsing.validators")
    for of_the_whole in (validators.OverlappingPathsValidator, validators.ActionCountValidator):
        of_the_whole.traverse = of_the_whole.process  # it looks at all that is below a node, and was shown every node
    resolver = validators.ExpressionAttributeResolvingProcessor
    actions = frozenset(getattr(nodes, f"UpdateExpression{name}Action") for name in ("Set", "Remove", "Delete", "Add"))
    is_node, has_clauses = _Kinds((nodes.Node,)), _Kinds((nodes.Expression, nodes.UpdateExpressionFunction))

    def find_clauses(self: Any, wanted: list[type]) -> list[Any]:
        found: list[Any] = []
        for child in self.children or ():
            kind = type(child)
            if kind in wanted:
                found.append(child)
            elif has_clauses[kind]:
                found += find_clauses(child, wanted)
        return found

    def before_child(self: Any, parent: Any, position: int) -> None:
        """The first child of an action is the path to change, and the others are values."""
        if type(parent) in actions:
            self.resolving = position > 0

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        """The tree below, with what leaves hold shared: strings, numbers and values that nobody changes."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.parent = None
        if self.children is not None:
            copy.children = []
            for child in self.children:
                if is_node[type(child)]:
                    child = copied(child, memo)
                    child.parent = copy
                copy.children.append(child)
        return copy

    ways: dict[type, _Ways] = {}  # by the class of the walker

    def traverse(self: Any, node: Any, child_id: int = -1) -> Any:
        by_kind = self._processing_map()
        processors = list(by_kind.values())
        before = self.pre_processing_of_child
        if type(self).pre_processing_of_child is traverser.pre_processing_of_child:  # which does nothing
            before = None
        known = ways.get(type(self))
        if known is None:
            known = ways[type(self)] = _Ways(nodes, list(by_kind))

        def walk(node: Any, way: tuple[int, bool], child_id: int) -> Any:
            processor, inner = way
            parent = node.parent
            if inner and node.children is not None:
                for position, child in enumerate(node.children):
                    if before is not None:
                        before(node, position)
                    if (found := known[type(child)]) is not None:
                        walk(child, found, position)
            if processor >= 0:
                node = processors[processor](node)
                node.parent = parent
                if parent:
                    parent.children[child_id] = node
            return node

        way = known[type(node)]
        return node if way is None else walk(node, way, child_id)

    nodes.Node.__deepcopy__ = copied
    nodes.Node.find_clauses = find_clauses
    resolver.pre_processing_of_child = before_child
    traverser.traverse_node_recursively = traverse


class _Kinds(dict[type, bool]):
    """Whether a class is one of these, or derived from one: `isinstance` for what an abstract class makes slow."""

    def __init__(self, classes: tuple[type, ...]) -> None:
        self._classes = classes

    def __missing__(self, kind: type) -> bool:
        found = self[kind] = issubclass(kind, self._classes)
        return found


class _Ways(dict[type, tuple[int, bool] | None]):
    """What a walker that processes the kinds `wanted` does with each kind of thing in a tree: which of its processors
    takes it (-1: none), and whether there may be nodes below. None: nothing, as with leaves that it does not process.
    """

    def __init__(self, nodes: Any, wanted: list[type]) -> None:
        self._nodes = nodes
        self._wanted = wanted

    def __missing__(self, kind: type) -> tuple[int, bool] | None:
        processor = next((i for i, wanted in enumerate(self._wanted) if issubclass(kind, wanted)), -1)
        inner = not issubclass(kind, self._nodes.LeafNode)
        found = (processor, inner) if issubclass(kind, self._nodes.Node) and (inner or processor >= 0) else None
        self[kind] = found
        return found


def _write_no_xml(exceptions: Any) -> None:
    """An error of a service that speaks JSON was written as XML first. Most are never sent: an update that adds to what
    is not there raises one for itself."""

    def make(self: Any, error_type: str, message: str, _: str = "", **options: Any) -> None:
        super(exceptions._RESTError, self).__init__()
        self.error_type, self.message = error_type, message
        self.description = json.dumps({"__type": error_type, "message": message})
        self.content_type = "application/json"

    exceptions.JsonRESTError.__init__ = make


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
