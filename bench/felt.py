"""How soon a change is felt, behind API Gateway and in a container, by callers who never pause: `python -m bench.felt`.

Everything runs: `tollgate dev` with its stand-in for API Gateway (which remembers the authorizer's answers), and a
`tollgate serve` on the same Redis and tables. Changes are written to the tables as somebody would by hand, and the time
runs from the end of that write to the first answer that shows it, asked for every quarter of a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tests.functional.callers import Answer, Caller, Callers
from tests.functional.stack import ROOT, DevStack, tollgate
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.http import HttpClient
from tollgate.adapters.keys_table import KeysTable, Owner
from tollgate.adapters.peppers import Peppers
from tollgate.local.children import free_port

POLL_S = 0.25
PATIENCE_S = 90.0
BEFORE, AFTER, BOOST = 500, 600, 700
"""Requests per minute, by which answers tell which limit counts."""

Shows = Callable[[Answer], bool]


class Subject:
    """A tenant that is about to change: a user of it at each door."""

    def __init__(self, callers: Callers, doors: dict[str, str], **attributes: Any) -> None:
        self.made_by = callers
        self.tenant = callers("before", **attributes).tenant
        self.callers = {door: self._caller(callers, f"user-{door}", url) for door, url in doors.items()}
        self.changed_at = float("inf")
        """On the monotonic clock."""
        self.key_id = ""

    def _caller(self, callers: Callers, name: str, url: str) -> Caller:
        """With a token that names a plan, as Cognito's do."""
        return Caller(url, self.tenant, name, callers.token(self.tenant, name, plan="before"))

    def call(self, door: str) -> Answer:
        return self.callers[door].chat(max_tokens=1)


def felt(
    subjects: list[Subject], change: Callable[[Subject], float | None], shows: Shows, pause_s: float
) -> dict[str, list[float]]:
    """Seconds until each change showed, by door. `change` makes it, and may say when it is to be felt (monotonic)."""
    found: dict[str, list[float]] = {door: [] for door in subjects[0].callers}

    def watch(subject: Subject, door: str) -> None:
        until = time.monotonic() + PATIENCE_S + len(subjects) * pause_s
        while time.monotonic() < until:
            began = time.monotonic()
            if shows(subject.call(door)) and time.monotonic() > subject.changed_at:
                found[door].append(max(time.monotonic() - subject.changed_at, 0.0))
                return
            time.sleep(max(0.0, began + POLL_S - time.monotonic()))
        found[door].append(float("inf"))

    for subject in subjects:
        for door in subject.callers:
            subject.call(door)
    watchers = [threading.Thread(target=watch, args=(it, door)) for it in subjects for door in it.callers]
    for watcher in watchers:
        watcher.start()
    time.sleep(2)
    for subject in subjects:
        at = change(subject)
        subject.changed_at = time.monotonic() if at is None else at
        time.sleep(pause_s)
    for watcher in watchers:
        watcher.join()
    return found


def status(code: int) -> Shows:
    return lambda answer: answer.status == code


def limit(amount: int) -> Shows:
    return lambda answer: answer.headers.get("x-ratelimit-limit-requests") == str(amount)


@contextmanager
def container(environ: dict[str, str]) -> Iterator[str]:
    """`tollgate serve` beside the stack; its URL."""
    port = free_port()
    env = {**os.environ, **environ, "TOLLGATE_DEFAULT_SCOPES": "none", "TOLLGATE_UNKNOWN_TENANTS": "refuse"}
    command = tollgate("serve", "--port", str(port))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env, cwd=ROOT)
    try:
        caller = Caller(f"http://127.0.0.1:{port}", "", "", "")
        until = time.monotonic() + 30
        while True:
            try:
                if caller.get("/healthz").status == 200:
                    break
            except ConnectionError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
            time.sleep(0.05)
        yield caller.url
    finally:
        process.terminate()
        process.wait(30)


def policy(folder: str) -> str:
    document = yaml.safe_load((ROOT / "policy.yaml").read_text())
    for name, requests in (("before", BEFORE), ("after", AFTER)):
        limits = [{"scope": "user", "requests": requests, "per": "minute"}]
        document["plans"][name] = {"models": ["small"], "limits": limits}
    path = Path(folder) / "policy.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def give_key(callers: Callers, subject: Subject) -> None:
    """The subject's callers use an API key from now on."""

    async def make() -> tuple[str, str]:
        environ, http = callers.environ, HttpClient()
        dynamodb, manager = (AwsClient.for_service(name, http, environ) for name in ("dynamodb", "secretsmanager"))
        peppers = Peppers(manager, environ["TOLLGATE_KEY_PEPPER"])
        made = await KeysTable(dynamodb, environ["TOLLGATE_KEYS_TABLE"], peppers, time.time).create(
            Owner(subject.tenant), "bench"
        )
        await http.aclose()
        return made.item["key_id"], made.key

    subject.key_id, key = asyncio.run(make())
    subject.callers = {door: replace(caller, token=key) for door, caller in subject.callers.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.felt", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="how often each change is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DevStack("--policy", policy(folder)) as stack:
        callers = Callers(stack)
        with container(callers.environ) as served:
            doors = {"gateway": stack.url, "container": served}
            print(f"{'':24}{'API Gateway and Lambda':>24}{'container':>24}")
            print(f"{'seconds':24}" + 2 * f"{'p50':>16}{'worst':>8}")
            for name, found in measured(callers, doors, options.times):
                row = "".join(f"{median(found[door]):16.2f}{max(found[door]):8.2f}" for door in doors)
                print(f"{name:24}{row}", flush=True)
    return 0


def measured(callers: Callers, doors: dict[str, str], times: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    def subjects(**attributes: Any) -> list[Subject]:
        return [Subject(callers, doors, **attributes) for _ in range(times)]

    boost = {"scope": "user", "requests": BOOST, "per": "minute"}
    same = subjects()
    yield (
        "tenant suspended",
        felt(same, lambda it: callers.put(it.tenant, "before", state="suspended"), status(403), 0.5),
    )
    for it in same:
        it.changed_at = float("inf")
    yield "tenant resumed", felt(same, lambda it: callers.put(it.tenant, "before"), status(200), 0.5)
    yield "user disabled", felt(subjects(), disable, status(403), 0.5)
    yield "plan of a tenant", felt(subjects(), lambda it: callers.put(it.tenant, "after"), limit(AFTER), 0.5)
    yield "tenant deleted", felt(subjects(), lambda it: delete(callers, it), status(403), 0.5)
    ended = subjects(limits=[{**boost, "until": "2099-01-01"}])
    yield "boost ended", felt(ended, lambda it: callers.put(it.tenant, "before"), limit(BEFORE), 0.5)
    yield "boost that runs out", felt(subjects(), lambda it: run_out(callers, it, boost), limit(BEFORE), 0.5)
    keyed = subjects()
    for it in keyed:
        give_key(callers, it)
    yield "API key revoked", felt(keyed, lambda it: revoke(callers, it), status(401), 1.3)


def disable(subject: Subject) -> None:
    """Both users of the tenant, by hand; `tollgate user disable` writes the same."""
    names = [{"user": caller.user} for caller in subject.callers.values()]
    subject.made_by.put(subject.tenant, "before", disabled_users=names)


def delete(callers: Callers, subject: Subject) -> None:
    callers._table("TENANTS").delete_item(Key={"tenant": subject.tenant})


def run_out(callers: Callers, subject: Subject, boost: dict[str, Any]) -> float:
    """A boost of twelve seconds, which must be felt before it ends."""
    ends = time.time() + 12
    callers.put(subject.tenant, "before", limits=[{**boost, "until": datetime.fromtimestamp(ends, UTC).isoformat()}])
    return time.monotonic() + ends - time.time()


def revoke(callers: Callers, subject: Subject) -> None:
    callers._table("KEYS").update_item(
        Key={"key_id": subject.key_id},
        UpdateExpression="SET revoked_at = :now",
        ExpressionAttributeValues={":now": "2026-01-01T00:00:00Z"},
    )


if __name__ == "__main__":
    sys.exit(main())
