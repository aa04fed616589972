"""Markers of admitted requests. An admission on several items is committed by its marker, and settling claims it.

h#<id>   e: expiry (µs), g: granted, w: where (null: settled there), n: which call, s: settler

What is claimed and then certainly cannot be settled everywhere is claimed no longer: it is settled later, where it was
not. Where nobody can tell, it counts as settled.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from tollgate.adapters.dynamodb import ConditionFailed, Expression, Plain, Table, Write, again
from tollgate.adapters.dynamodb_limit_items import DAY_S
from tollgate.domain.dataclass import dataclass
from tollgate.domain.keys import digest
from tollgate.domain.limits import SECOND_US
from tollgate.ports import StoreUnavailable

ABREAST = 64
"""Markers that one container writes at once: each is an item of its own, and nobody's crowd needs more connections."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one part of an admitted request was taken."""

    pk: str
    shards: int
    expiry_s: int
    own: bool
    """Whether the admission took it itself, rather than finding it taken by a call of the same id."""


@dataclass(frozen=True, slots=True)
class Marker:
    """An admitted request. Raises `StoreUnavailable` for what nobody of us can have written."""

    expiry_us: int
    granted: list[int]
    places: Sequence[Place | None]
    """None where a settlement is done that failed elsewhere."""
    call: str
    """Which call admitted it."""
    settler: str = ""
    """Which call has settled it, if one has."""

    @classmethod
    def read(cls, plain: Plain) -> Marker:
        try:
            granted, places = json.loads(plain["g"]), [place and Place(*place) for place in json.loads(plain["w"])]
            return cls(int(plain["e"]), [int(amount) for amount in granted], places, plain["n"], plain.get("s", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreUnavailable(f"DynamoDB: {plain.get('pk')} is not a marker that Tollgate wrote") from error

    def plain(self, pk: str) -> Plain:
        return {
            "pk": pk,
            "e": self.expiry_us,
            "g": json.dumps(self.granted, separators=(",", ":")),
            "w": _where(self.places),
            "n": self.call,
            "ttl": self.expiry_us // SECOND_US + DAY_S,
        }


def _where(places: Iterable[Place | None]) -> str:
    found = [place and [place.pk, place.shards, place.expiry_s, place.own] for place in places]
    return json.dumps(found, separators=(",", ":"))


def marker_key(id: str) -> str:
    return f"h#{digest(id)}"


class Markers:
    """The markers in a table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._turns = asyncio.Semaphore(ABREAST)

    async def find(self, ids: Iterable[str]) -> dict[str, Marker]:
        """Those that exist, by id."""
        pks = {marker_key(id): id for id in ids}
        found = await self._table.get_many([{"pk": pk} for pk in pks])
        return {pks[plain["pk"]]: Marker.read(plain) for plain in found}

    async def put(self, id: str, marker: Marker, now: int) -> Marker | None:
        """Commit; the marker of an earlier call of the same id, if it is there already and not settled. (What this call
        writes is refused if it arrives after its settlement.)"""
        pk, ex = marker_key(id), Expression()
        settled = f"attribute_exists({ex.name('s')}) AND {ex.name('n')} <> {ex.value(marker.call)}"
        gone = f"attribute_not_exists({ex.name('pk')}) OR {ex.name('e')} <= {ex.value(now)}"
        free = f"{gone} OR ({settled})"
        try:
            async with self._turns:
                await again(lambda: self._table.put(marker.plain(pk), condition=free, expression=ex))
        except ConditionFailed as failed:
            first = Marker.read(failed.item)
            return first if first.call != marker.call else None  # else only the reply was lost
        except StoreUnavailable:  # it may have been written all the same
            await self._withdraw(pk, marker.call)
            raise
        return None

    async def _withdraw(self, pk: str, call: str) -> None:
        ex = Expression()
        with suppress(ConditionFailed, StoreUnavailable):
            condition = f"{ex.name('n')} = {ex.value(call)}"
            await self._table.delete({"pk": pk}, condition=condition, expression=ex)

    async def claim(self, id: str, now: int) -> Marker | None:
        """The marker of an admission that nobody has settled and whose holds live; from now on it is settled."""
        call, write = os.urandom(8).hex(), Write()
        settler = write.name("s")
        write.conditions += [f"{write.name('e')} > {write.value(now)}", f"attribute_not_exists({settler})"]
        write.sets.append(f"{settler} = {write.value(call)}")
        try:
            key = {"pk": marker_key(id)}
            async with self._turns:
                return Marker.read(await again(lambda: self._table.update(key, write, returns="ALL_NEW")))
        except ConditionFailed as failed:
            found = Marker.read(failed.item) if failed.item else None
            return found if found is not None and found.settler == call else None
        except StoreUnavailable:  # the last try need not be the one that may have claimed it
            await self._unclaim(id, call)
            raise

    async def unclaim(self, id: str, marker: Marker, left: Sequence[bool]) -> None:
        """Let it be settled later where it is `left` (parallel to its places). Where that fails, too, it stays settled:
        holds expire, and metering brings what was used."""
        places = [place if open else None for place, open in zip(marker.places, left, strict=True)]
        await self._unclaim(id, marker.settler, places)

    async def _unclaim(self, id: str, call: str, places: Sequence[Place | None] = ()) -> None:
        write = Write()
        settler = write.name("s")
        write.conditions.append(f"{settler} = {write.value(call)}")
        write.removes.append(settler)
        if places:
            write.sets.append(f"{write.name('w')} = {write.value(_where(places))}")
        with suppress(ConditionFailed, StoreUnavailable):
            await again(lambda: self._table.update({"pk": marker_key(id)}, write))
