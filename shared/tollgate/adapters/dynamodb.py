"""DynamoDB as Tollgate uses it: flat items of whole numbers and text, conditional writes, and one kind of failure.

`Expression` numbers the placeholders, so that no attribute name can clash with DynamoDB's reserved words or break out
of an expression. Whatever goes wrong below becomes `StoreUnavailable` here, except a condition that does not hold:
that is an answer, and carries the item as it stands.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tollgate.adapters.aws import AwsError
from tollgate.adapters.http import UpstreamError
from tollgate.ports import Overloaded, StoreUnavailable

Plain = dict[str, Any]
"""An item's attributes as Python values: int or str (bool where one was written)."""
Coded = dict[str, dict[str, Any]]
"""The same as DynamoDB writes them: ``{"N": "7"}``."""
Key = dict[str, str]

BATCH = 100
"""Keys per BatchGetItem, and actions per TransactWriteItems: DynamoDB's limits."""
BATCH_WRITE = 25
UNPROCESSED_TRIES = 6
THROTTLED_TRIES = 3
AGAIN_WITHIN_S = 1.0
"""How soon a reply must be lost for the write to be made again: nobody waits twice for a timeout."""
T = TypeVar("T")


class Client(Protocol):
    """`AwsClient`, as far as it is used here."""

    @property
    def clock_offset_us(self) -> int: ...

    @property
    def clock_known(self) -> bool: ...

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]: ...


class Unsure(StoreUnavailable):
    """No answer, or a failure: what was asked may have been done, or may yet be."""


class ConditionFailed(Exception):
    """The write's condition does not hold; `item` is what is there, empty if nothing is."""

    def __init__(self, item: Plain) -> None:
        super().__init__("the condition does not hold")
        self.item = item


class Cancelled(Exception):
    """A transaction took no effect; `reasons` are parallel to its actions: (code, item as it stands)."""

    def __init__(self, reasons: list[tuple[str, Plain]]) -> None:
        super().__init__("transaction cancelled: " + ", ".join(sorted({code for code, _ in reasons})))
        self.reasons = reasons


class Expression:
    """Names and values of one request's expressions."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._values: dict[int | str | frozenset[str], str] = {}

    def name(self, attribute: str) -> str:
        return self._names.setdefault(attribute, f"#{len(self._names)}")

    def value(self, value: int | str | frozenset[str]) -> str:
        return self._values.setdefault(value, f":{len(self._values)}")

    @property
    def names(self) -> dict[str, str]:
        """What each placeholder of a name stands for."""
        return {short: name for name, short in self._names.items()}

    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._names:
            found["ExpressionAttributeNames"] = self.names
        if self._values:
            found["ExpressionAttributeValues"] = {short: encode(value) for value, short in self._values.items()}
        return found


class Write(Expression):
    """One UpdateItem: what it sets, adds to sets and removes, and the conditions that must all hold."""

    def __init__(self) -> None:
        super().__init__()
        self.sets: list[str] = []
        self.adds: list[str] = []
        self.removes: list[str] = []
        self.conditions: list[str] = []

    @property
    def update(self) -> str:
        clauses = (("SET ", self.sets), ("ADD ", self.adds), ("REMOVE ", self.removes))
        return " ".join(verb + ", ".join(terms) for verb, terms in clauses if terms)

    @property
    def condition(self) -> str:
        return " AND ".join(self.conditions)


class Table:
    """One table. `patient`: nobody waits, so whatever may pass is tried again for seconds; else only what DynamoDB has
    turned away unseen (throttling) is, at once and seldom."""

    def __init__(self, client: Client, name: str, *, patient: bool) -> None:
        self.client = client
        self.name = name
        self._patient = patient

    async def get(self, key: Key) -> Plain:
        """The item, read consistently; empty if there is none."""
        found = await self._call("GetItem", {"TableName": self.name, "Key": encode_item(key), "ConsistentRead": True})
        return decode_item(found.get("Item", {}))

    async def get_many(self, keys: Sequence[Key], *, consistent: bool = True) -> list[Plain]:
        """The items that exist among `keys` (each with its key attributes), in no order."""
        found: list[Plain] = []
        for at in range(0, len(keys), BATCH):
            wanted = {"Keys": [encode_item(key) for key in keys[at : at + BATCH]], "ConsistentRead": consistent}
            waiting: dict[str, Any] = {self.name: wanted}
            for attempt in range(UNPROCESSED_TRIES):
                answer = await self._call("BatchGetItem", {"RequestItems": waiting})
                found += [decode_item(item) for item in answer.get("Responses", {}).get(self.name, [])]
                waiting = answer.get("UnprocessedKeys") or {}
                if not waiting:
                    break
                await pause(attempt)
            else:
                raise StoreUnavailable("DynamoDB: keys stay unprocessed")
        return found

    async def put(self, item: Plain, *, condition: str = "", expression: Expression | None = None) -> None:
        """Raises `ConditionFailed`."""
        payload = {"TableName": self.name, "Item": encode_item(item), **_condition(condition, expression)}
        await self._call("PutItem", payload)

    async def update(self, key: Key, write: Write, *, returns: str = "NONE") -> Plain:
        """What `returns` asks for (``ALL_OLD``, ``UPDATED_NEW`` ...). Raises `ConditionFailed`."""
        payload = {
            "TableName": self.name,
            "Key": encode_item(key),
            "UpdateExpression": write.update,
            "ReturnValues": returns,
            **_condition(write.condition, write),
        }
        return decode_item((await self._call("UpdateItem", payload)).get("Attributes", {}))

    async def delete(self, key: Key, *, condition: str = "", expression: Expression | None = None) -> Plain:
        """The item that was deleted, empty if there was none. Raises `ConditionFailed`."""
        payload = {
            "TableName": self.name,
            "Key": encode_item(key),
            "ReturnValues": "ALL_OLD",
            **_condition(condition, expression),
        }
        return decode_item((await self._call("DeleteItem", payload)).get("Attributes", {}))

    async def query(
        self, expression: Expression, condition: str, *, limit: int = 0, consistent: bool = False, index: str = ""
    ) -> AsyncIterator[Plain]:
        """Items of one partition in the order of their sort keys, page by page; at most `limit`, if it is given.
        `index`: of that index, not of the table itself."""
        options: dict[str, Any] = {}
        if index:
            options["IndexName"] = index
        if limit:
            options["Limit"] = limit
        if consistent:
            options["ConsistentRead"] = True
        count = 0
        async for page in self.pages(expression, condition, **options):
            for item in page:
                yield decode_item(item)
            count += len(page)
            if limit and count >= limit:
                return

    async def pages(self, expression: Expression, condition: str, **options: Any) -> AsyncIterator[list[Coded]]:
        """The same as DynamoDB sends it (up to 1 MB at once), for who reads very many; `options`: Query's own."""
        payload = {"TableName": self.name, "KeyConditionExpression": condition, **expression.payload(), **options}
        while True:
            answer = await self._call("Query", payload)
            yield answer.get("Items", [])
            if not answer.get("LastEvaluatedKey"):
                return
            payload["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def scan(self) -> AsyncIterator[Plain]:
        """Every item; for sweeps only."""
        payload: dict[str, Any] = {"TableName": self.name}
        while True:
            answer = await self._call("Scan", payload)
            for item in answer.get("Items", []):
                yield decode_item(item)
            if not answer.get("LastEvaluatedKey"):
                return
            payload["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def write_many(self, puts: Sequence[Plain] = (), deletes: Sequence[Key] = ()) -> None:
        """Unconditional puts and deletes, which may be repeated without harm."""
        requests: list[dict[str, Any]] = [{"PutRequest": {"Item": encode_item(item)}} for item in puts]
        requests += [{"DeleteRequest": {"Key": encode_item(key)}} for key in deletes]
        for at in range(0, len(requests), BATCH_WRITE):
            waiting: dict[str, Any] = {self.name: requests[at : at + BATCH_WRITE]}
            for attempt in range(UNPROCESSED_TRIES):
                waiting = (await self._call("BatchWriteItem", {"RequestItems": waiting})).get("UnprocessedItems") or {}
                if not waiting:
                    break
                await pause(attempt)
            else:
                raise StoreUnavailable("DynamoDB: items stay unprocessed")

    async def transact(self, actions: list[dict[str, Any]]) -> None:
        """All of `actions`, or none. Raises `Cancelled`."""
        await self._call("TransactWriteItems", {"TransactItems": actions})

    async def _call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._try(operation, payload)
        except AwsError as error:
            if error.code == "ConditionalCheckFailedException":
                raise ConditionFailed(decode_item(error.body.get("Item") or {})) from None
            if error.code == "TransactionCanceledException":
                reasons = error.body.get("CancellationReasons") or []
                raise Cancelled([(r.get("Code", "None"), decode_item(r.get("Item") or {})) for r in reasons]) from None
            kind = Unsure if error.status >= 500 else Overloaded if error.retryable else StoreUnavailable
            raise kind(f"DynamoDB: {operation} on {self.name}: {error}") from error
        except UpstreamError as error:
            kind = Unsure if error.sent else StoreUnavailable
            raise kind(f"DynamoDB: {operation} on {self.name}: {error}") from error

    async def _try(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        if self._patient:
            return await self.client.call(operation, payload, retry=True)
        for attempt in range(THROTTLED_TRIES - 1):
            try:
                return await self.client.call(operation, payload)
            except AwsError as error:
                if not error.retryable or error.status >= 500:  # after a 5xx it may have been done
                    raise
                await pause(attempt)
        return await self.client.call(operation, payload)


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """A call that may be made twice, made again if its reply is soon lost."""
    started = time.monotonic()
    try:
        return await call()
    except Unsure:
        if time.monotonic() - started > AGAIN_WITHIN_S:
            raise
        return await call()


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """Everything at once. All of it is over when this returns, or raises the first failure."""
    results = await asyncio.gather(*work, return_exceptions=True)
    done: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


async def few_at_once(number: int, work: Iterator[Awaitable[None]]) -> None:
    """Everything, so many at a time, each begun when its turn comes. After a failure nothing more begins; it is raised
    when all that runs is over."""
    failed = False

    async def one_after_another() -> None:
        nonlocal failed
        while not failed and (one := next(work, None)) is not None:
            try:
                await one
            except BaseException:
                failed = True
                raise

    await together(one_after_another() for _ in range(number))


async def pause(attempt: int) -> None:
    """Full jitter: up to 25 ms after the first attempt, doubling, at most 0.8 s."""
    await asyncio.sleep(random.uniform(0, 0.025 * 2 ** min(attempt, 5)))


def encode(value: int | str | frozenset[str]) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, frozenset):
        return {"SS": sorted(value)}
    return {"N": str(value)} if isinstance(value, int) else {"S": value}


def encode_item(item: Mapping[str, int | str | frozenset[str]]) -> dict[str, Any]:
    return {name: encode(value) for name, value in item.items()}


def decode_item(item: Mapping[str, Mapping[str, Any]]) -> Plain:
    return {name: _decode(value) for name, value in item.items()}


def _decode(value: Mapping[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "N":  # nobody of us writes fractions: they stay text
        return int(inner) if inner.lstrip("-").isdigit() else inner
    return frozenset(inner) if kind == "SS" else inner


def _condition(condition: str, expression: Expression | None) -> dict[str, Any]:
    found = expression.payload() if expression is not None else {}
    if condition:
        found |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    return found
