"""`redis://` and `rediss://`: the limit store in Redis, by the scripts in `lua/`. One call per admission, one per
settlement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tollgate.adapters.redis_connection import (
    REPLY_TIMEOUT,
    ConnectionLost,
    Login,
    RedisAddress,
    RedisNode,
    RedisReplyError,
)
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Settlement,
    SlotTake,
    State,
    Status,
    Take,
)
from tollgate.ports import StoreUnavailable

EPOCH = keys.global_subject() + "epoch"
POLICY_VERSION = keys.global_subject() + "policy"


class Script:
    """One file of `lua/`, called by its digest and sent whole where Redis does not know it (after SCRIPT FLUSH)."""

    def __init__(self, name: str) -> None:
        self.source = (_lua_folder() / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Scripts:
    """All of them."""

    def __init__(self) -> None:
        self.admit = Script("admit")
        self.settle = Script("settle")
        self.raise_floor = Script("raise_floor")
        self.publish = Script("publish")
        self.reopen = Script("reopen")


def _lua_folder() -> Path:
    """`lua/` beside the package (a deployed bundle) or beside its source root (a checkout)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "lua", package.parent.parent / "lua"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no lua/ folder beside {package}: the installation is incomplete")


class RedisLimitStore:
    """Shared buckets on a single Redis or Valkey node (6.2 to 9).

    `clock` replaces the server's clock (µs), for tests that replay the same moments on every store.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        reply_timeout: float = REPLY_TIMEOUT,
        clock: Callable[[], int] | None = None,
        login: Login | None = None,
    ) -> None:
        self._node = RedisNode(RedisAddress.parse(url), reply_timeout, login)
        self._clock = clock
        self._scripts = Scripts()

    async def admit(self, admission: Admission) -> Decision:
        subject = keys.tenant_subject(admission.tenant)
        head = (f"{subject}m:{admission.id}", POLICY_VERSION, f"{subject}version", EPOCH)
        names, args, order = admit_call(admission, head, self._now())
        return read_decision(await self._run(self._scripts.admit, names, args, idempotent=True), order, self.name)

    async def settle(self, settlement: Settlement) -> bool:
        marker = f"{keys.tenant_subject(settlement.tenant)}m:{settlement.id}"
        names, args = settle_call(settlement, marker, self._now())
        return bool(await self._run(self._scripts.settle, names, args, idempotent=True))

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        if spent:
            await self._run(self._scripts.raise_floor, list(spent), list(spent.values()), idempotent=True)

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        versions = {f"{keys.tenant_subject(name)}version": version for name, version in (tenants or {}).items()}
        if policy:
            versions[POLICY_VERSION] = policy
        if versions:
            await self._run(self._scripts.publish, list(versions), list(versions.values()), idempotent=True)

    async def reopen(self, outage_us: int) -> None:
        """After an outage that began `outage_us` ago: have every budget loaded again before it is trusted."""
        await self._run(self._scripts.reopen, [EPOCH], [outage_us, self._now()], idempotent=True)

    async def ping(self) -> None:
        connection = await self._node.connected()
        try:
            await connection.call("PING")
        except RedisReplyError as error:
            raise StoreUnavailable(f"Redis answered {error.code}") from error

    async def aclose(self) -> None:
        self._node.close()

    def _now(self) -> int:
        return 0 if self._clock is None else self._clock()

    async def _run(self, script: Script, names: Sequence[str], args: Sequence[str | int], *, idempotent: bool) -> Any:
        """One script call. Where the connection breaks (it does not time out), an idempotent call is made once more
        on a new one: Redis restarted, or closed an idle connection."""
        connection = self._node.connection or await self._node.connected()
        try:
            try:
                return await connection.call("EVALSHA", script.sha, len(names), *names, *args)
            except RedisReplyError as error:
                if error.code != "NOSCRIPT":
                    raise
                return await connection.call("EVAL", script.source, len(names), *names, *args)
        except RedisReplyError as error:
            raise StoreUnavailable(f"Redis answered {error}") from error
        except ConnectionLost:
            if not idempotent:
                raise
            return await self._run(script, names, args, idempotent=False)


# -- the scripts' arguments and results ------------------------------------------------------------------------------


def admit_call(
    admission: Admission, head: tuple[str, str, str, str], now_us: int
) -> tuple[list[str], list[str | int], list[int]]:
    """KEYS and ARGV for `lua/admit.lua`, and the order of its answer as positions in `admission.takes`. `head`: the
    keys of the request's marker, the policy's version, the tenant's version, and the epoch."""
    rates, budgets, slots = _sorted(admission.takes)
    names = [*head]
    args: list[str | int] = [
        now_us, admission.expires_us, admission.policy_version, admission.tenant_version,
        admission.id, len(rates), len(budgets), len(slots),
    ]  # fmt: skip
    for _, rate in rates:
        names.append(rate.key)
        keep = admission.expires_us if rate.limit.refundable else 0
        args += (rate.inc_us, rate.floor_us, rate.limit.burst_us, keep)
    for _, budget in budgets:
        names.append(budget.key)
        args += (budget.cost, budget.floor, budget.limit.amount, budget.start_us, budget.end_us)
        args.append("" if budget.seed is None else budget.seed)
    for _, slot in slots:
        names.append(slot.key)
        args.append(slot.limit.amount)
    return names, args, [i for i, _ in (*rates, *budgets, *slots)]


def settle_call(settlement: Settlement, marker: str, now_us: int) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV for `lua/settle.lua`."""
    rates, budgets, slots = _sorted(settlement.takes)
    names = [marker]
    args: list[str | int] = [now_us, settlement.id, len(rates), len(budgets), len(slots)]
    for i, rate in rates:
        names.append(rate.key)
        used = settlement.used[i]
        args.append("" if used is None else rate.limit.inc_us(used))
    for i, budget in budgets:
        names.append(budget.key)
        args.append(settlement.used[i] or 0)
    names += [slot.key for _, slot in slots]
    return names, args


_UNSEEN = State(0)
_STATUSES = {int(status): status for status in Status}


def _sorted(
    takes: Sequence[Take],
) -> tuple[list[tuple[int, RateTake]], list[tuple[int, BudgetTake]], list[tuple[int, SlotTake]]]:
    """Takes by kind, with their positions: the scripts read all rates at once."""
    rates: list[tuple[int, RateTake]] = []
    budgets: list[tuple[int, BudgetTake]] = []
    slots: list[tuple[int, SlotTake]] = []
    for i, take in enumerate(takes):
        if isinstance(take, RateTake):
            rates.append((i, take))
        elif isinstance(take, BudgetTake):
            budgets.append((i, take))
        else:
            slots.append((i, take))
    return rates, budgets, slots


def read_decision(reply: list[int], order: list[int], store: str) -> Decision:
    """The answer of `lua/admit.lua`, with its states in the order of the admission's takes."""
    status = _STATUSES[reply[0]]
    decision = Decision(status, reply[1], [], (), reply[2], reply[3], store)
    if status is Status.COLD:
        decision.cold = tuple(sorted(order[i] for i in reply[4:]))
    elif status in (Status.ADMITTED, Status.REFUSED):
        states = decision.states = [_UNSEEN] * len(order)
        for i, value, granted in zip(order, reply[4::2], reply[5::2], strict=True):
            states[i] = State(value, granted)
    return decision
