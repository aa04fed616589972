"""The policy and the tenants in DynamoDB: what gateways read, and what the `tollgate` command changes.

Operators edit plans, models and upstreams as items of the policy table, with the command or in the console. What is
found to be right becomes the snapshot, the one item that gateways read; so a mistake in an edit never reaches one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tollgate.adapters import telemetry
from tollgate.adapters.document_table import (
    MAX_ACTIONS,
    Client,
    Condition,
    ConditionFailed,
    DocumentTable,
    Item,
    as_read,
)
from tollgate.adapters.policy_items import KINDS, SNAPSHOT, body_of, body_text, items_of, pack, same, unpack
from tollgate.adapters.policy_items import document_of as document_of_items
from tollgate.adapters.policy_items import without_bookkeeping as bare
from tollgate.adapters.tenants_table import (
    CONTENT,
    Conflict,
    NotFound,
    TenantRow,
    TenantsTable,
    document_of,
    no_tenant,
    persistently,
    record_of,
    same_content,
    stamp,
    successor,
    version_of,
)
from tollgate.domain.policy import Policy, TenantRecord, TenantSpec
from tollgate.domain.policy_check import check, check_record, tenant_problems
from tollgate.domain.policy_diff import Change, changes
from tollgate.domain.policy_document import Document, PolicyErrors, Problem
from tollgate.domain.policy_overrides import GROUPS, override
from tollgate.domain.policy_paths import nearest
from tollgate.domain.schema import plain
from tollgate.ports import PolicyUnavailable

__all__ = ["Applied", "Conflict", "NotFound", "PolicyTables", "TenantRow"]

MAX_LAST_GOOD = 1000
"""Tenants whose last good record is remembered."""
PUBLISH_TRIES = 10
_TENANTS = "TENANTS"
_NOT_TENANTS = tuple(group for group in GROUPS if group != _TENANTS)


class Applied(NamedTuple):
    """What `apply` did. `revision` is the policy's from now on."""

    changes: list[Change]
    revision: int
    tenants: list[str]
    """Tenants that were made or changed."""


class PolicyTables:
    """A `PolicySource` over the two tables, and their administration. Belongs to one event loop.

    Failures to reach the tables are raised as `PolicyUnavailable`. `environ` overrides single values of what is read,
    never of what is written.
    """

    def __init__(
        self,
        client: Client,
        policy_table: str,
        tenants_table: str,
        environ: Mapping[str, str] | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.tenants = TenantsTable(client, tenants_table, clock_s)
        self._policies = DocumentTable(client, policy_table, "id")
        self._clock_s = clock_s
        self._environ = {} if environ is None else dict(environ)
        self._overridden = any(name.upper().startswith("TOLLGATE_TENANTS__") for name in self._environ)
        self._last: Policy | None = None
        self._last_records: OrderedDict[str, TenantRecord] = OrderedDict()

    # -- what gateways read ----------------------------------------------------------------------------------------

    async def policy(self) -> Policy:
        """The policy of the newest snapshot, with this process's overrides.

        One that cannot be used (an override of what is no longer there, say) raises an alarm, and the last good one
        stays in force under the new revision, so that nobody waits for another.
        """
        snapshot = await self._policies.get(SNAPSHOT)
        if snapshot is None:
            raise PolicyUnavailable("no policy was published yet: `tollgate policy apply` does it")
        revision = version_of({"version": snapshot.get("revision")})
        if self._last is not None and self._last.revision == revision:
            return self._last
        try:
            policy = self._read(snapshot)
        except PolicyErrors as errors:
            _alarm("PolicyRejected", "the published policy cannot be used here", errors)
            if self._last is None:
                raise PolicyUnavailable(str(errors)) from errors
            policy = self._last
        self._last = policy.replace(revision=revision)
        return self._last

    async def tenant(self, name: str) -> TenantRecord | None:
        """The tenant's record. One that cannot be read raises an alarm, and the last good one stays in force."""
        item = await self.tenants.item(name)
        if item is None:
            self._last_records.pop(name, None)
            return None
        try:
            record = self._record(name, item)
        except PolicyErrors as errors:
            _alarm("TenantRejected", "a tenant's record cannot be used", errors, tenant=name)
            last = self._last_records.get(name)
            if last is None:
                raise PolicyUnavailable(str(errors)) from errors
            record = last.replace(version=max(last.version, version_of(item)))
        self._last_records.pop(name, None)
        self._last_records[name] = record
        if len(self._last_records) > MAX_LAST_GOOD:
            self._last_records.popitem(last=False)
        return record

    def _read(self, snapshot: Item) -> Policy:
        document = unpack(snapshot)
        problems = override(document, self._environ, _NOT_TENANTS)
        if problems:
            raise PolicyErrors(problems)
        return check(document)

    def _record(self, name: str, item: Item) -> TenantRecord:
        document = document_of(item)
        if self._overridden:
            whole = Document({"tenants": {name: document.value}})
            problems = override(whole, self._environ, (_TENANTS,))
            # a variable for another tenant is none of this one's business
            mine = [problem for problem in problems if problem.path[1:2] == (name,)]
            if mine:
                raise PolicyErrors(mine)
            document.value = whole.value["tenants"][name]
            document.places |= {path[2:]: place for path, place in whole.places.items()}
        return check_record(TenantRecord, document)

    # -- what operators see and change -----------------------------------------------------------------------------

    async def items(self) -> dict[str, Item]:
        """Every item of the policy table by its id, the snapshot included."""
        return {str(item["id"]): item async for item in self._policies.scan()}

    async def edited(self) -> Policy:
        """The policy that the items say, published or not. Raises `PolicyErrors`."""
        items = await self.items()
        policy = check(document_of_items(items.values()))
        return policy.replace(revision=_revision(items.get(SNAPSHOT)))

    async def published(self) -> Policy:
        """The policy of the snapshot as it is, without anybody's overrides. Raises `PolicyErrors`, `NotFound`."""
        snapshot = await self._policies.get(SNAPSHOT)
        if snapshot is None:
            raise NotFound("no policy was published yet: `tollgate policy apply` does it")
        return check(unpack(snapshot)).replace(revision=_revision(snapshot))

    async def diff(self, policy: Policy) -> list[Change]:
        """What `apply` would change, tenants of the file included."""
        items = await self.items()
        return _item_changes(items, policy) + await self._tenant_changes(policy)

    async def apply(self, policy: Policy, actor: str, seen: Sequence[Change] | None = None) -> Applied:
        """Make `policy` the policy: change the items that differ, remove those that it lacks, publish the snapshot.

        Tenants that it names are made or changed; what it does not say of them stays, and a suspended one stays
        suspended. Up to a hundred items change in one transaction, so that nobody sees half of it. `seen`: the
        difference that somebody has agreed to, and no other. Raises `Conflict` if it is another by now,
        if a plan that tenants are on would go, or if somebody else was publishing; `PolicyErrors` if it is too large.
        """
        items = await self.items()
        if seen is not None and _item_changes(items, policy) + await self._tenant_changes(policy) != list(seen):
            raise Conflict("the policy or its tenants have changed since you looked: look at the difference again")
        return await self._apply(policy, items, actor)

    async def _apply(self, policy: Policy, items: Mapping[str, Item], actor: str) -> Applied:
        """Turn `items`, which were read from the table and have led to `policy`, into it."""
        wanted = items_of(policy)
        found = _item_changes(items, policy)
        gone = [key for key in items if key not in wanted and key != SNAPSHOT]
        await self._refuse_orphans(gone, policy)
        signed = {"updated_at": stamp(self._clock_s()), "updated_by": actor}
        actions = [
            {"Put": self._policies.put_action({**entry, "id": key, **signed}, _as_read(items.get(key), entry))}
            for key, entry in wanted.items()
            if key not in items or not same(bare(items[key], "id"), entry)
        ]
        actions += [{"Delete": self._policies.delete_action(key, _as_read(items[key]))} for key in reversed(gone)]
        snapshot, revision = self._snapshot(items.get(SNAPSHOT), policy, published_by=actor, removed=gone)
        if snapshot is not None:
            actions.append({"Put": snapshot})
        try:
            for at in range(0, len(actions), MAX_ACTIONS):
                await self._policies.transact(actions[at : at + MAX_ACTIONS])
        except ConditionFailed:
            raise Conflict("somebody else changed the policy at the same time: look at the difference again") from None
        changed = await self._tenant_changes(policy)
        names = [name for name, spec in policy.tenants.items() if await self.tenants.upsert(name, spec, actor)]
        return Applied(found + changed, revision, names)

    async def publish(self) -> tuple[Policy, int]:
        """Publish what the items say, if it is not published yet; with its revision. Raises `PolicyErrors`."""
        for _ in range(PUBLISH_TRIES):
            items = await self.items()
            policy = check(document_of_items(items.values()))
            snapshot, revision = self._snapshot(items.get(SNAPSHOT), policy)
            if snapshot is not None:
                try:
                    await self._policies.transact([{"Put": snapshot}])
                except ConditionFailed:
                    continue  # somebody else published; what they had read may be older or newer than this
            return policy, revision
        raise PolicyUnavailable("others keep publishing: the policy changes too fast")

    def check_tenant(self, policy: Policy, image: Mapping[str, Any]) -> TenantSpec:
        """A tenant's record as an edit left it. Raises `PolicyErrors`."""
        record = record_of(image)
        self._refuse_unrelated(policy, record.tenant, record)
        return record

    async def settle_version(
        self, tenant: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> int:
        """The version that an edit is known by. One that was made by hand, in the console, has none of its own, and
        gets one here; 0 if it changed nothing that matters, or was overtaken by another edit."""
        old = version_of(before or {})
        if after is None:  # deleted: whoever holds the record must look again
            return successor(old, self._clock_s())
        new = version_of(after)
        if new > old:
            return new
        if before is not None and new == old and same_content(before, after):
            return 0
        grown = successor(max(new, old), self._clock_s())
        return grown if await self.tenants.grow(tenant, after.get("version"), grown) else 0

    async def create_tenant(self, name: str, spec: TenantSpec, actor: str) -> TenantRecord:
        """Raises `Conflict`, `PolicyErrors`; `NotFound` before a policy was published."""
        self._refuse_unrelated(await self.published(), name, spec)
        return await self.tenants.create(name, spec, actor)

    async def edit_tenant(self, name: str, edit: Callable[[dict[str, Any]], Any], actor: str) -> TenantRecord:
        """Change what an item says; `edit` takes the plain data and gives the new. Where somebody else is faster, it
        is asked again, with what they left. Raises `NotFound`, `Conflict`, `PolicyErrors`."""

        async def once() -> TenantRecord:
            item = await self.tenants.item(name)
            if item is None:
                raise no_tenant(name)
            before = plain(check_record(TenantRecord, document_of(item)))
            content = edit(before)
            self._refuse_meaningless(document_of(item), before, content)
            if content.get("credit") != before.get("credit"):
                problem = document_of(item).problem(("credit",), "is the sum of what was paid", "use `tollgate credit`")
                raise PolicyErrors([problem])
            whole = {**content, "tenant": name, "version": version_of(item) or 1}
            record = check_record(TenantRecord, document_of(whole))
            self._refuse_unrelated(await self.published(), name, record)
            return await self.tenants.write(item, plain(record), actor)

        return await persistently(once)

    @staticmethod
    def _refuse_meaningless(document: Document, before: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """A name that means nothing is a slip: `stat=suspended` must not look like success. Raises `PolicyErrors`."""
        problems = [document.problem((name,), "is not known", nearest(name, CONTENT))
                    for name in content if name not in before and name not in CONTENT]  # fmt: skip
        problems += [document.problem((name,), "cannot be set")
                     for name in ("tenant", "version") if content.get(name) != before.get(name)]  # fmt: skip
        if problems:
            raise PolicyErrors(problems)

    async def edit_plan(self, name: str, edit: Callable[[dict[str, Any]], Any], actor: str) -> Applied:
        """Change a plan (`edit` as above), or make one. The whole policy is checked before anything is written.
        Raises `Conflict`, `PolicyErrors`."""

        async def once() -> Applied:
            items = await self.items()
            document = document_of_items(items.values())
            plans = document.value["plans"]
            plans[name] = edit(plans.get(name, {}))
            return await self._apply(check(document), items, actor)

        return await persistently(once)

    async def removed_by(self) -> tuple[str, frozenset[str]]:
        """Who published last, and which items that removed: an item that is gone cannot say so itself."""
        snapshot = await self._policies.get(SNAPSHOT) or {}
        return str(snapshot.get("published_by", "")), frozenset(snapshot.get("removed", ()))

    def _snapshot(self, old: Item | None, policy: Policy, **signed: Any) -> tuple[dict[str, Any] | None, int]:
        """The write that publishes `policy` (None if it is published), and its revision."""
        body = body_of(policy)
        revision = _revision(old)
        if old is not None and revision and _body(old) == body:
            return None, revision
        grown = successor(revision, self._clock_s())
        item = {"id": SNAPSHOT, "revision": grown, "published_at": stamp(self._clock_s()), **signed, **pack(body)}
        if old is None:
            return self._policies.put_action(item, as_read("id", None, ())), grown
        if not revision:  # somebody overwrote it by hand
            return self._policies.put_action(item), grown
        return self._policies.put_action(item, as_read("id", old, ("revision",))), grown

    async def _refuse_orphans(self, gone: list[str], policy: Policy) -> None:
        plans = [key.partition("#")[2] for key in gone if key.startswith("plan#")]
        if not plans:
            return
        orphans = [(t, plan) for t, plan in await self.tenants.on_plans(plans) if t not in policy.tenants]
        if orphans:
            named = ", ".join(f"{tenant} ({plan})" for tenant, plan in orphans[:5])
            more = f" and {len(orphans) - 5} more" if len(orphans) > 5 else ""
            raise Conflict(f"these tenants are on a plan that would go: {named}{more}; give them another plan first")

    async def _tenant_changes(self, policy: Policy) -> list[Change]:
        found: list[Change] = []
        for name, spec in policy.tenants.items():
            item = await self.tenants.item(name)
            before = None if item is None else {key: item.get(key) for key in plain(spec)}
            found += changes(before, plain(spec), ("tenants", name))
        return found

    @staticmethod
    def _refuse_unrelated(policy: Policy, name: str, spec: TenantSpec) -> None:
        problems: list[Problem] = list(tenant_problems(policy, name, spec, Document(None, f"tenant {name}")))
        if problems:
            raise PolicyErrors(problems)


def _item_changes(items: Mapping[str, Item], policy: Policy) -> list[Change]:
    before = {key: bare(item, "id") for key, item in items.items() if key != SNAPSHOT}
    return changes(_by_group(before), _by_group(items_of(policy)))


def _by_group(items: Mapping[str, Item]) -> dict[str, Any]:
    """The items as the policy's own tree, for its paths; also of items that are no part of one."""
    found: dict[str, Any] = {group: {} for group in KINDS.values()}
    for key, entry in items.items():
        kind, separator, name = key.partition("#")
        if separator:
            found.setdefault(f"{kind}s", {})[name] = entry
        else:
            found[key] = entry
    return found


def _as_read(item: Item | None, wanted: Iterable[str] = ()) -> Condition:
    """That an item is still as it was read, in what it had and in what it shall have."""
    return as_read("id", item, sorted({*bare(item or {}, "id"), *wanted}))


def _revision(snapshot: Item | None) -> int:
    return version_of({"version": (snapshot or {}).get("revision")})


def _body(snapshot: Item) -> str:
    try:
        return body_text(snapshot)
    except PolicyErrors:
        return ""


def _alarm(name: str, message: str, errors: PolicyErrors, **fields: Any) -> None:
    problems = [problem.as_dict() for problem in errors.problems]
    telemetry.log("ERROR", f"{message}; the last good one stays in force", problems=problems, **fields)
    telemetry.metric("Tollgate", {"service": telemetry.service()}, **{name: 1})
