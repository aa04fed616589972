"""The table of API keys as operators use it: make, list, rotate, revoke. The authorizer's side is `key_records`.

An item has the key's id (`key_id`), its owner, its secrets as hashes, and what it may do; nothing in it can be used as
a key. It goes `KEPT_S` after the key ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tollgate.adapters.document_table import Client, ConditionFailed, DocumentTable, Item, as_read
from tollgate.adapters.peppers import Peppers
from tollgate.adapters.tenants_table import TRIES, Conflict, NotFound
from tollgate.domain import api_keys

BY_TENANT = "by-tenant"
"""The index of the table whose key is the attribute `tenant`."""
KEPT_S = 90 * 86_400
"""How long an ended key is still listed."""
ENDED = ("revoked", "expired")
"""States of keys (`state_of`) that are good for nothing any more."""
DECISIVE = ("secrets", "revoked_at", "expires_at")
"""What a change depends on: if one of these has changed since it was read, it is read again."""
MAX_SECRETS = 5
"""Of one key at a time: the newest, and old ones whose overlap has not ended."""


class Owner(NamedTuple):
    """Whose a key is. Without a user, the key is its own user: it has limits and a line in reports of its own."""

    tenant: str
    user: str = ""
    team: str = ""


class Made(NamedTuple):
    """A key's item, and the key itself, which nobody can ever read again."""

    item: Item
    key: str


class PepperUse(NamedTuple):
    """A pepper, and the keys that have a secret which works and was hashed with it."""

    number: str
    keys: list[str]
    newest: bool
    """Whether new secrets are hashed with it."""
    missing: bool
    """Whether it is not there, although a key needs it: that key is answered 503."""


class KeysTable:
    """Failures to reach AWS are raised as `PolicyUnavailable`."""

    def __init__(self, dynamodb: Client, name: str, peppers: Peppers, clock_s: Callable[[], float]) -> None:
        self._table = DocumentTable(dynamodb, name, "key_id")
        self._peppers = peppers
        self._clock_s = clock_s

    async def create(
        self, owner: Owner, actor: str, *, note: str = "", expires_at: int | None = None, restrictions: str = ""
    ) -> Made:
        """`expires_at` in epoch seconds; `restrictions`: `Restrictions.text`."""
        key = api_keys.make(secrets.token_bytes(api_keys.ID_BYTES), secrets.token_bytes(api_keys.SECRET_BYTES))
        id = api_keys.parse(key)
        assert id is not None
        now = int(self._clock_s())
        optional = {"team": owner.team, "note": note, "restrictions": restrictions, "expires_at": expires_at}
        if expires_at is not None:
            optional["ttl"] = expires_at + KEPT_S
        item: Item = {
            "key_id": id,
            "tenant": owner.tenant,
            "user": owner.user or f"key-{id}",
            "secrets": [await self._peppers.hashed(key)],
            "created_at": _stamp(now),
            "created_by": actor,
            **_signed(actor, now),
            **{name: value for name, value in optional.items() if value},
        }
        try:
            await self._table.put(item, as_read("key_id", None, ()))
        except ConditionFailed:  # one in 2^72
            raise Conflict("this key's id is taken: try again") from None
        return Made(item, key)

    async def get(self, id: str) -> Item:
        """Raises `NotFound`."""
        item = await self._table.get(id)
        if item is None:
            raise NotFound(f"there is no API key {id!r} (ended keys are listed for {KEPT_S // 86_400} days)")
        return item

    async def list(self, tenant: str | None = None) -> list[Item]:
        """The keys of a tenant, or all, oldest first."""
        found = self._table.scan() if tenant is None else self._table.query(BY_TENANT, "tenant", tenant)
        return sorted([item async for item in found], key=lambda item: (item["tenant"], item["created_at"]))

    async def rotate(self, id: str, actor: str, *, overlap_s: int) -> Made:
        """A new secret for the key; those it has stay good for `overlap_s` seconds at most. Its id, limits and usage
        go on. Raises `NotFound`, `Conflict`."""
        key = api_keys.with_secret(id, secrets.token_bytes(api_keys.SECRET_BYTES))
        hashed = await self._peppers.hashed(key)

        def change(item: Item, now: int) -> dict[str, Any]:
            self._refuse_ended(item, now)
            ends = now + overlap_s
            old = [{**s, "until": min(s.get("until", ends), ends)} for s in item["secrets"]]
            kept = [secret for secret in old if secret["until"] > now]
            if len(kept) >= MAX_SECRETS:
                raise Conflict(
                    f"API key {id} has {len(kept)} secrets whose overlap has not ended: wait, or make a new key"
                )
            return {"secrets": [hashed, *kept], "rotated_at": _stamp(now), **_signed(actor, now)}

        return Made(await self._change(id, change), key)

    async def finish(self, id: str, actor: str) -> Item:
        """End the overlap now: of the key's secrets only the newest stays good. Raises `NotFound`, `Conflict`."""

        def change(item: Item, now: int) -> dict[str, Any]:
            self._refuse_ended(item, now)
            newest, *old = item["secrets"]
            if not any(now < secret.get("until", api_keys.NEVER) for secret in old):
                raise Conflict(f"API key {id} has one secret only: there is nothing to finish")
            return {"secrets": [newest], **_signed(actor, now)}

        return await self._change(id, change)

    async def revoke(self, id: str, actor: str) -> Item:
        """End the key, whatever secrets it has; again changes nothing. Raises `NotFound`, `Conflict`."""

        def change(item: Item, now: int) -> dict[str, Any]:
            if "revoked_at" in item:
                return {}
            return {"revoked_at": _stamp(now), "ttl": now + KEPT_S, **_signed(actor, now)}

        return await self._change(id, change)

    async def peppers(self) -> Sequence[PepperUse]:
        """Every pepper that there is, or that a key needs, oldest first."""
        now = self._clock_s()
        there = await self._peppers.numbers()
        needed: dict[str, list[str]] = {number: [] for number in there}
        async for item in self._table.scan():
            if state_of(item, now) not in ENDED:
                good = {secret["pepper"] for secret in item["secrets"] if now < secret.get("until", api_keys.NEVER)}
                for number in good:
                    needed.setdefault(number, []).append(item["key_id"])
        return [
            PepperUse(number, sorted(needed[number]), number == there[-1], number not in there)
            for number in sorted(needed, key=int)
        ]

    async def add_pepper(self) -> str:
        """A pepper for all secrets that are made from now on; its number. Raises `Conflict`."""
        return await self._peppers.add(beyond=max(int(use.number) for use in await self.peppers()))

    async def retire_pepper(self, number: str) -> None:
        """Take a pepper away that no key needs any more. Raises `NotFound`, `Conflict`."""
        use = next((use for use in await self.peppers() if use.number == number and not use.missing), None)
        if use is None:
            raise NotFound(f"there is no pepper {number!r}: `tollgate key pepper list` shows them")
        if use.newest:
            raise Conflict(f"new secrets are hashed with pepper {number}: make another first (tollgate key pepper add)")
        if use.keys:
            some = ", ".join(use.keys[:3]) + (", ..." if len(use.keys) > 3 else "")
            raise Conflict(f"pepper {number} is needed by {len(use.keys)} keys ({some}): rotate or revoke them first")
        await self._peppers.remove(number)

    async def _change(self, id: str, change: Callable[[Item, int], dict[str, Any]]) -> Item:
        """Set what `change` says, if nobody else changes the item meanwhile; else look at it again."""
        for _ in range(TRIES):
            item = await self.get(id)
            now = int(self._clock_s())
            changed = change(item, now)
            if not changed:
                return item
            try:
                unchanged = as_read("key_id", item, DECISIVE)
                await self._table.update(self._table.update_action(id, changed, unchanged))
            except ConditionFailed:
                continue
            return {**item, **changed}
        raise Conflict(f"API key {id} is being changed by somebody else: try again")

    @staticmethod
    def _refuse_ended(item: Item, now: int) -> None:
        state = state_of(item, now)
        if state in ENDED:
            raise Conflict(f"API key {item['key_id']} is {state}: make a new one")


def state_of(item: Mapping[str, Any], now: float) -> str:
    """``active``, ``expired`` or ``revoked``; ``rotating`` while an old secret is good beside the new one."""
    if item.get("revoked_at"):
        return "revoked"
    if now >= item.get("expires_at", api_keys.NEVER):
        return "expired"
    return "rotating" if any(now < s.get("until", 0) for s in item["secrets"]) else "active"


def _signed(actor: str, now_s: int) -> dict[str, str]:
    """For the audit log."""
    return {"updated_at": _stamp(now_s), "updated_by": actor}


def _stamp(now_s: float) -> str:
    return datetime.fromtimestamp(int(now_s), UTC).isoformat().replace("+00:00", "Z")
