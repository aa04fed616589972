"""What each process consists of: the only place that puts services together with adapters (`wiring.py`).

What all functions need is imported here; what only some do is imported where they are put together: the gateway's parts
when its application is made, the adapters when their process starts. Nothing is left for a request to import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tollgate.ports import LimitStore, PolicySource, Spending
from tollgate.wiring import Adapters, BadSetting, Settings, clock_us

if TYPE_CHECKING:
    from tollgate.adapters.alert_table import AlertTable
    from tollgate.adapters.audit_table import AuditTable
    from tollgate.adapters.dynamodb_ledger import DynamoLedger
    from tollgate.adapters.event_bus import EventBridge
    from tollgate.adapters.policy_tables import PolicyTables
    from tollgate.adapters.sigv4 import Credentials as SigningCredentials
    from tollgate.domain.limits import FailureMode
    from tollgate.services.alerts import Thresholds
    from tollgate.services.application import Application
    from tollgate.services.directory import Directory
    from tollgate.services.exchange import Exchange
    from tollgate.services.gateway import Gateway, Identify
    from tollgate.services.meter import DeadLetters
    from tollgate.services.reconcile import BudgetStore

    Deadline = Callable[[Exchange], int | None]
    Name = Callable[[Exchange], str]


KEYS_CACHED_S = 20
"""How long `tollgate serve` believes what it read of an API key: a third of what revoking one may take. The rest is for
times in which the table does not answer."""


class StdoutUsageLog:
    """Usage records on stdout, one line each: whoever runs the process subscribes to them."""

    def __init__(self) -> None:
        import orjson

        self._dumps, self._line = orjson.dumps, orjson.OPT_APPEND_NEWLINE
        self._fd = sys.stdout.fileno()

    def write(self, record: Mapping[str, Any]) -> None:
        line = self._dumps(record, option=self._line)
        while line:  # a full pipe may take part of it
            line = line[os.write(self._fd, line) :]


async def gateway(
    settings: Settings, identify: Identify, name: Name, deadline: Deadline, *, max_in_flight: int = 0
) -> Gateway:
    """The gateway with everything that it needs. Belongs to the running event loop."""
    from tollgate.services.account import Account
    from tollgate.services.administration import Administration
    from tollgate.services.admit import Admitter
    from tollgate.services.directory import Directory
    from tollgate.services.forward import Forwarder
    from tollgate.services.gateway import Gateway

    adapters = Adapters(settings)
    adapters.http.prepare()
    mode = FailureModeSetting(settings.failure_mode)
    store = adapters.limit_store(mode)
    await adapters.warm()
    spending = adapters.spending()

    def deciding() -> str:
        return getattr(store, "deciding", store.name)

    # Only tables have a stream that publishes versions, and only shared stores compare them; a file is looked at again.
    versioned = bool(settings.policy_table and settings.tenants_table)
    directory = Directory(
        adapters.policy_source(),
        clock_us,
        versioned=lambda: versioned and deciding() in ("redis", "dynamodb"),
        plan_of_token=settings.plan_of_token,
    )
    mode.follow(directory)
    admitter = Admitter(store, spending, directory, adapters.local, clock_us)

    def status() -> dict[str, object]:
        return {"status": "ok", "store": deciding(), "policy": directory.revision}

    return Gateway(
        identify=identify,
        account=Account(directory, spending, store, admitter.now_us),
        administration=Administration(directory, adapters.administrators(), status, admitter.now_us),
        admitter=admitter,
        forwarder=Forwarder(adapters.http, adapters.secrets(), adapters.sign),
        usage_log=StdoutUsageLog(),
        clock=clock_us,
        name=name,
        deadline=deadline,
        status=status,
        close=adapters.aclose,
        max_in_flight=max_in_flight,
    )


class FailureModeSetting:
    """What decides while Redis does not: the environment, else the policy, else ``fallback``."""

    def __init__(self, from_environment: str) -> None:
        self._fixed = from_environment
        self._directory: Directory | None = None

    def follow(self, directory: Directory) -> None:
        self._directory = directory

    def __call__(self) -> FailureMode:
        if self._fixed:
            return cast("FailureMode", self._fixed)
        policy = self._directory.known_policy if self._directory is not None else None
        return (policy.redis_failure_mode if policy is not None else None) or "fallback"


# -- the two ways to run the proxy -----------------------------------------------------------------------------------


def lambda_application() -> Application:
    """For `functions.proxy.app`: callers are known from API Gateway's request context."""
    if not os.environ.get("AWS_LAMBDA_FUNCTION_NAME"):
        raise BadSetting(
            "functions.proxy.app believes the x-amzn-request-context header, which only API Gateway may set: "
            "it runs on Lambda alone. Use `tollgate serve` elsewhere."
        )
    from tollgate.services.application import Application
    from tollgate.services.identify import from_request_context, invocation_id, lambda_deadline

    settings = Settings.read()
    return Application(lambda: gateway(settings, from_request_context, invocation_id, lambda_deadline))


def serve_application() -> Application:
    """For `tollgate serve`: the authorizer's code runs in this process."""
    from tollgate.authentication import authenticator
    from tollgate.services.application import Application
    from tollgate.services.identify import Credentials, new_id

    settings = Settings.read()
    cap = _whole(settings.environ, "TOLLGATE_MAX_IN_FLIGHT", 1000)
    try:
        known = authenticator(settings.environ, _signer(settings.environ), cached_s=KEYS_CACHED_S)
        identify = Credentials(known, settings.environ.get("TOLLGATE_TRUSTED_PROXIES", ""))
    except ValueError as error:
        raise BadSetting(str(error)) from error

    async def serving() -> Gateway:
        await identify.warm()
        return await gateway(settings, identify, new_id, lambda exchange: None, max_in_flight=cap)

    return Application(serving)


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadSetting(f"{name}: expected a whole number, found {text!r}")
    return int(text)


def _signer(environ: Mapping[str, str]) -> Callable[[], SigningCredentials | None]:
    """As whom this process signs calls to AWS: found in the environment, or by botocore's chain, which may call out."""
    from tollgate.adapters.aws import NoCredentials, Resolver
    from tollgate.adapters.aws_environment import environment_credentials

    resolver = Resolver(environ.get("AWS_PROFILE"))

    def credentials() -> SigningCredentials | None:
        try:
            return environment_credentials(environ) or resolver()
        except NoCredentials:
            return None

    return credentials


def serve(host: str = "127.0.0.1", port: int = 8080, workers: int = 1) -> int:
    """Run the gateway in this process (or in `workers` of them) until SIGTERM; streams in flight are drained.

    Returns the exit code. Raises `BadSetting` before anything is started.
    """
    from tollgate.adapters import http_server

    serve_application()  # a bad setting stops here, with its name, rather than in a worker
    return http_server.serve(serve_application, host, port, workers=workers)


# -- the functions ---------------------------------------------------------------------------------------------------
#
# Their handlers are synchronous. Most run one event loop per invocation, and their adapters live as long; metering,
# which never rests, keeps both (`adapters/kept.py`).


class Metering(NamedTuple):
    """What `functions.metering` works with."""

    ledger: DynamoLedger
    store: LimitStore
    letters: DeadLetters
    thresholds: Thresholds | None
    """None where the policy's tables are not named: nothing is known of thresholds."""
    audit: Callable[[], AuditTable]
    """Where refusals are noted. Raises `BadSetting`."""


@asynccontextmanager
async def metering() -> AsyncIterator[Metering]:
    """Raises `BadSetting`."""
    from tollgate.adapters.alert_table import AlertTable
    from tollgate.adapters.dead_letters import LoggedDeadLetters, QueuedDeadLetters
    from tollgate.services.alerts import Budgets, Thresholds

    async with _adapters() as adapters:
        queue = adapters.settings.environ.get("TOLLGATE_DEAD_LETTER_QUEUE_URL")
        letters = QueuedDeadLetters(adapters.aws("sqs"), queue) if queue else LoggedDeadLetters()
        thresholds: Thresholds | None = None
        if adapters.settings.policy_table and adapters.settings.tenants_table:
            outbox = AlertTable(adapters.aws("dynamodb"), adapters.settings.ledger_table)
            thresholds = Thresholds(Budgets(), adapters.policy_source(), outbox)
        store = adapters.limit_store(lambda: "fallback")
        yield Metering(adapters.ledger(), store, letters, thresholds, adapters.audit)


@asynccontextmanager
async def alerts() -> AsyncIterator[tuple[AlertTable, EventBridge, DynamoLedger, PolicySource]]:
    """What `functions.alerts` works with. Raises `BadSetting`."""
    from tollgate.adapters.alert_table import AlertTable
    from tollgate.adapters.event_bus import EventBridge

    async with _adapters() as adapters:
        bus = adapters.settings.environ.get("TOLLGATE_EVENT_BUS") or "default"
        table = AlertTable(adapters.aws("dynamodb"), adapters.settings.ledger_table)
        yield table, EventBridge(adapters.aws("events"), bus), adapters.ledger(), adapters.policy_source()


@asynccontextmanager
async def reconciler() -> AsyncIterator[tuple[DynamoLedger, Sequence[BudgetStore]]]:
    """What `functions.reconciler` works with: the ledger, and the stores to compare it with. Raises `BadSetting`."""
    async with _adapters() as adapters:
        stores = adapters.compared_stores()
        try:
            yield adapters.ledger(), stores
        finally:
            for store in stores:
                await store.aclose()


@asynccontextmanager
async def publisher() -> AsyncIterator[tuple[PolicyTables, LimitStore, AuditTable]]:
    """What `functions.publisher` works with. Raises `BadSetting`."""
    from tollgate.adapters.policy_tables import PolicyTables

    async with _adapters() as adapters:
        settings = adapters.settings
        tables = PolicyTables(adapters.aws("dynamodb"), settings.policy_table, settings.tenants_table, settings.environ)
        yield tables, adapters.limit_store(lambda: "fallback"), adapters.audit()


@asynccontextmanager
async def inspector() -> AsyncIterator[tuple[Directory, LimitStore, Spending]]:
    """What `functions.inspect` looks at. Raises `BadSetting`."""
    from tollgate.services.directory import Directory

    async with _adapters() as adapters:
        directory = Directory(
            adapters.policy_source(),
            clock_us,
            versioned=lambda: False,
            plan_of_token=adapters.settings.plan_of_token,
        )
        yield directory, adapters.limit_store(lambda: "fallback"), adapters.spending()


@asynccontextmanager
async def _adapters() -> AsyncIterator[Adapters]:
    adapters = Adapters(Settings.read())
    try:
        yield adapters
    finally:
        await adapters.aclose()
