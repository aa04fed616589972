"""DynamoDB, as far as the limit store uses it: conditional writes on flat items, and a capacity for each item.

The store's own code runs on it unmodified. An item serves 1,000 write units a second (of 1 KB each, whether or not the
condition holds), as one partition does; what is beyond is turned away, as DynamoDB does it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from bench.simulator.chance import Delay
from bench.simulator.costs import COSTS
from tollgate.adapters.aws import AwsError
from tollgate.adapters.dynamodb import Plain, decode_item, encode_item
from tollgate.adapters.server_clock import ServerClock

UNITS_PER_S = 1000.0
BURST_S = 1.0
"""How much unused capacity an item may catch up with."""
ROUND_TRIP = Delay(0.004, 0.35, tail_share=0.005, tail_median_s=0.05)


class Items:
    """One table, for everyone. Times are true seconds."""

    def __init__(self, units_per_s: float = UNITS_PER_S) -> None:
        self.items: dict[str, Plain] = {}
        self.throttled_by_item: Counter[str] = Counter()
        self.units_by_item: Counter[str] = Counter()
        self._units_per_s = units_per_s
        self._spent: dict[str, tuple[float, float]] = {}
        """Item -> (write units in debt, when)."""

    def answer(self, operation: str, payload: Mapping[str, Any], now: float) -> dict[str, Any]:
        """What DynamoDB would answer. Raises `AwsError`."""
        match operation:
            case "GetItem":
                COSTS.get().reads += 1
                found = self.items.get(_pk(payload["Key"]))
                return {} if found is None else {"Item": encode_item(found)}
            case "BatchGetItem":
                ((name, wanted),) = payload["RequestItems"].items()
                COSTS.get().reads += len(wanted["Keys"])
                there = [self.items[pk] for pk in map(_pk, wanted["Keys"]) if pk in self.items]
                return {"Responses": {name: [encode_item(item) for item in there]}}
            case "PutItem" | "UpdateItem" | "DeleteItem":
                return self._write(operation, payload, now)
        raise NotImplementedError(operation)  # the limit store makes no other call

    def _write(self, operation: str, payload: Mapping[str, Any], now: float) -> dict[str, Any]:
        pk = _pk(payload["Item"] if operation == "PutItem" else payload["Key"])
        old = self.items.get(pk)
        self._charge(pk, old, now)
        values = decode_item(payload.get("ExpressionAttributeValues", {}))
        names = payload.get("ExpressionAttributeNames", {})
        condition = payload.get("ConditionExpression")
        texts = f"{condition} {payload.get('UpdateExpression')} "
        if idle := [short for short in (*names, *payload.get("ExpressionAttributeValues", {})) if short not in texts]:
            raise AwsError("ValidationException", f"unused in expressions: {idle}", 400, {})
        if condition and not _condition(condition)(old or {}, names, values):
            body = {} if old is None else {"Item": encode_item(old)}
            raise AwsError("ConditionalCheckFailedException", "the condition does not hold", 400, body)
        if operation == "DeleteItem":
            self.items.pop(pk, None)
            new: Plain = {}
        elif operation == "PutItem":
            new = self.items[pk] = decode_item(payload["Item"])
        else:
            new = self.items[pk] = _update(payload["UpdateExpression"], {"pk": pk, **(old or {})}, names, values)
        match payload.get("ReturnValues", "NONE"):
            case "ALL_OLD":
                shown = old or {}
            case "ALL_NEW":
                shown = new
            case "UPDATED_OLD":
                shown = {name: value for name, value in (old or {}).items() if name in names.values()}
            case "UPDATED_NEW":
                shown = {name: value for name, value in new.items() if name in names.values()}
            case _:
                shown = {}
        return {"Attributes": encode_item(shown)} if shown else {}

    def _charge(self, pk: str, item: Plain | None, now: float) -> None:
        """Spend the item's capacity on one write. Raises `AwsError` where it has none left."""
        size = sum(len(name) + _size(value) for name, value in (item or {}).items())
        units = 1 + size // 1024
        debt, since = self._spent.get(pk, (0.0, now))
        debt = max(0.0, debt - (now - since) * self._units_per_s)
        costs = COSTS.get()
        if debt + units > self._units_per_s * BURST_S:
            costs.throttled += 1
            self.throttled_by_item[pk] += 1
            raise AwsError("ThrottlingException", "throughput exceeds the partition's", 400, {})
        self._spent[pk] = (debt + units, now)
        costs.writes += 1
        costs.subject_writes += pk[0] not in "hv"
        self.units_by_item[pk] += units


class TableClient:
    """One container's client: it takes its time, and learns the server's clock from the answers' dates."""

    def __init__(
        self,
        items: Items,
        chance: random.Random,
        *,
        clock: Callable[[], int],
        true_clock: Callable[[], int],
        round_trip: Delay = ROUND_TRIP,
    ) -> None:
        """Clocks in µs since 1970: the container's own, and DynamoDB's."""
        self._items = items
        self._chance = chance
        self._clock = clock
        self._true_clock = true_clock
        self._round_trip = round_trip
        self._learned = ServerClock()

    @property
    def clock_offset_us(self) -> int:
        return self._learned.offset_us

    @property
    def clock_known(self) -> bool:
        return self._learned.known(self._clock(), _steady_us())

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        sent_us = self._clock()
        half_s = self._round_trip.draw(self._chance) / 2
        await asyncio.sleep(half_s)
        try:
            date_s = self._true_clock() // 1_000_000
            return self._items.answer(operation, payload, asyncio.get_running_loop().time())
        finally:
            await asyncio.sleep(half_s)
            self._learned.observe(_date(date_s), sent_us, self._clock(), _steady_us())


def _steady_us() -> int:
    return int(asyncio.get_running_loop().time() * 1e6)


@lru_cache(maxsize=64)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _size(value: Any) -> int:
    """Bytes, near enough: DynamoDB's numbers have a byte for two digits, and one more."""
    if isinstance(value, frozenset):
        return sum(map(len, value))
    return len(value) if isinstance(value, str) else 9


def _pk(key: Mapping[str, Mapping[str, str]]) -> str:
    return key["pk"]["S"]


# -- expressions: DynamoDB's grammar is near enough to Python's to be rewritten, once for each text ------------------

Evaluated = Callable[[Plain, Mapping[str, str], Mapping[str, Any]], Any]
_OPERAND = r"(?:[#:]\d+)"


class _Missing:
    """An attribute that is not there: it compares with nothing."""

    def _never(self, other: object) -> bool:
        return False

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _never
    __hash__ = object.__hash__


_MISSING = _Missing()


def _count(value: Any) -> Any:
    return value if value is _MISSING else len(value)


def _python(text: str) -> str:
    text = re.sub(rf"({_OPERAND}) BETWEEN ({_OPERAND}) AND ({_OPERAND})", r"(\2 <= \1 and \1 <= \3)", text)
    text = re.sub(r"attribute_not_exists\((#\d+)\)", r"(names['\1'] not in item)", text)
    text = re.sub(r"attribute_exists\((#\d+)\)", r"(names['\1'] in item)", text)
    text = re.sub(r"if_not_exists\((#\d+), ([^)]*)\)", r"item.get(names['\1'], \2)", text)
    text = re.sub(r"contains\((#\d+), (:\d+)\)", r"(\2 in item.get(names['\1'], ()))", text)
    text = re.sub(r"size\((#\d+)\)", r"size(item.get(names['\1'], missing))", text)
    text = text.replace(" AND ", " and ").replace(" OR ", " or ").replace("NOT ", "not ").replace("<>", "!=")
    text = re.sub(r"(?<![<>!=])=(?!=)", "==", text)
    text = re.sub(r"(?<!')(#\d+)", r"item.get(names['\1'], missing)", text)
    return re.sub(r"(:\d+)", r"values['\1']", text)


def _compiled(source: str) -> Evaluated:
    found: Evaluated = eval(f"lambda item, names, values: {source}", {"missing": _MISSING, "size": _count})
    return found


@lru_cache(maxsize=4096)
def _condition(text: str) -> Evaluated:
    return _compiled(_python(text))


_Clauses = dict[str, tuple[tuple[str, Evaluated], ...]]


@lru_cache(maxsize=4096)
def _clauses(text: str) -> _Clauses:
    """For each of SET, REMOVE, ADD and DELETE: which attributes, and what of them."""
    found: _Clauses = {}
    for verb, body in re.findall(r"(SET|REMOVE|ADD|DELETE) (.*?)(?= (?:SET|REMOVE|ADD|DELETE) |$)", text):
        parts = [re.split(r" = | ", part, maxsplit=1) for part in re.split(r", (?=#\d+(?: |,|$))", body)]
        found[verb] = tuple((part[0], _compiled(_python(part[1] if part[1:] else "0"))) for part in parts)
    return found


def _update(text: str, item: Plain, names: Mapping[str, str], values: Mapping[str, Any]) -> Plain:
    clauses = _clauses(text)
    new = dict(item)
    for name, value in clauses.get("SET", ()):
        new[names[name]] = value(item, names, values)
    for name, value in clauses.get("ADD", ()):
        more = value(item, names, values)
        old = item.get(names[name], frozenset() if isinstance(more, frozenset) else 0)
        new[names[name]] = old | more if isinstance(more, frozenset) else old + more
    for name, value in clauses.get("DELETE", ()):
        new[names[name]] = item.get(names[name], frozenset()) - value(item, names, values)
    for name, _ in clauses.get("REMOVE", ()):
        new.pop(names[name], None)
    return {name: value for name, value in new.items() if value != frozenset()}
