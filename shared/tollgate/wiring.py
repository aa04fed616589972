"""What this process's environment says, and the adapters that follow from it; imports what the choice needs alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from tollgate.adapters.http import HttpClient
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.ports import Administrators, LimitStore, PolicySource, Secrets, SecretUnavailable, Spending

if TYPE_CHECKING:
    from tollgate.adapters.audit_table import AuditTable
    from tollgate.adapters.aws import AwsClient, CredentialSource
    from tollgate.adapters.dynamodb_ledger import DynamoLedger
    from tollgate.adapters.dynamodb_limits import DynamoLimitStore
    from tollgate.adapters.failover import FailoverLimitStore
    from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
    from tollgate.adapters.redis_limits import RedisLimitStore
    from tollgate.domain.limits import BudgetTake, FailureMode
    from tollgate.domain.policy import UpstreamSpec
    from tollgate.services.exchange import Header


class BadSetting(Exception):
    """An environment variable cannot be used; the message names it. A start stops here."""


class Settings(NamedTuple):
    """What the environment says about this process (everything else is policy)."""

    store_url: str
    policy_file: str
    policy_table: str
    tenants_table: str
    limits_table: str
    ledger_table: str
    audit_table: str
    plan_of_token: bool
    """Whether tenants without a record have the plan that their callers' tokens name."""
    region: str
    failure_mode: str
    environ: Mapping[str, str]

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Raises `BadSetting`."""
        env = os.environ if environ is None else environ
        mode = env.get("REDIS_FAILURE_MODE", "")
        if mode not in ("", "fallback", "open", "closed"):
            raise BadSetting(f"REDIS_FAILURE_MODE: expected fallback, open or closed, found {mode!r}")
        unknown = env.get("TOLLGATE_UNKNOWN_TENANTS", "")
        if unknown not in ("", "token", "refuse"):
            raise BadSetting(f"TOLLGATE_UNKNOWN_TENANTS: expected token or refuse, found {unknown!r}")
        store_url = env.get("TOLLGATE_STORE_URL") or env.get("REDIS_URL") or ""
        if not store_url:
            store_url = (
                f"dynamodb://{env['TOLLGATE_LIMITS_TABLE']}" if env.get("TOLLGATE_LIMITS_TABLE") else "memory://"
            )
        scheme = store_url.partition("://")[0]
        if scheme not in ("memory", "redis", "rediss", "dynamodb"):
            raise BadSetting(
                f"TOLLGATE_STORE_URL: expected memory://, redis://, rediss:// or dynamodb://table, found {scheme!r}"
            )
        return cls(
            store_url,
            env.get("TOLLGATE_POLICY", ""),
            env.get("TOLLGATE_POLICY_TABLE", ""),
            env.get("TOLLGATE_TENANTS_TABLE", ""),
            env.get("TOLLGATE_LIMITS_TABLE", ""),
            env.get("TOLLGATE_LEDGER_TABLE", ""),
            env.get("TOLLGATE_AUDIT_TABLE", ""),
            unknown != "refuse",
            env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            mode,
            env,
        )


def clock_us() -> int:
    """This machine's clock, in microseconds since 1970."""
    return int(time.time() * 1_000_000)  # exact to a quarter of one


class NoLedger:
    """Where no ledger table is configured: nothing is known to be spent before this process started."""

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [0] * len(takes)


class Adapters:
    """One process's adapters, made when they are first asked for, closed together."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = HttpClient()
        self.local = MemoryLimitStore()
        self._stores: list[FailoverLimitStore] = []
        self._role: CredentialSource | None = None

    def aws(self, service: str) -> AwsClient:
        from tollgate.adapters.aws import AwsClient

        return AwsClient.for_service(service, self.http, self.settings.environ)

    def policy_source(self) -> PolicySource:
        """The tables where they are named, else the policy file."""
        settings = self.settings
        if settings.policy_table and settings.tenants_table:
            from tollgate.adapters.policy_tables import PolicyTables

            return PolicyTables(self.aws("dynamodb"), settings.policy_table, settings.tenants_table, settings.environ)
        from tollgate.adapters.policy_file import FilePolicySource

        return FilePolicySource(settings.policy_file or "policy.yaml", settings.environ)

    def limit_store(self, mode: Callable[[], FailureMode]) -> LimitStore:
        """The store that TOLLGATE_STORE_URL names; Redis with DynamoDB behind it where a limits table is named."""
        settings = self.settings
        scheme, _, rest = settings.store_url.partition("://")
        if scheme == "memory":
            return self.local
        if scheme == "dynamodb":
            return self._dynamodb(rest, "full")
        from tollgate.adapters.failover import FailoverLimitStore

        redis = self._redis()
        fallback = self._dynamodb(settings.limits_table, "half") if settings.limits_table else None
        begins = fallback.outage_begins if fallback is not None else lambda: None
        told = bool(settings.failure_mode)  # by the environment, whose word comes first
        store = FailoverLimitStore(redis, fallback, self.local, mode, same_for_all=told, outage_begins=begins)
        self._stores.append(store)
        return store

    def compared_stores(self) -> list[RedisLimitStore | RedisClusterLimitStore | DynamoLimitStore]:
        """Every store that counts budgets, each by itself."""
        scheme, _, rest = self.settings.store_url.partition("://")
        tables = rest if scheme == "dynamodb" else self.settings.limits_table
        redis = [self._redis()] if scheme in ("redis", "rediss") else []
        return [*redis, *([self._dynamodb(tables, "full")] if tables else [])]

    def _redis(self) -> RedisLimitStore | RedisClusterLimitStore:
        from tollgate.adapters.redis_store import redis_limit_store

        try:
            return redis_limit_store(self.settings.store_url, self.settings.environ)
        except ValueError as error:
            raise BadSetting(f"TOLLGATE_STORE_URL: {error}") from error

    def _dynamodb(self, table: str, unknown: Literal["full", "half"]) -> DynamoLimitStore:
        """`unknown`: how a rate starts that the table does not know: half empty, where Redis has counted it before."""
        from tollgate.adapters.dynamodb_limits import DynamoLimitStore

        return DynamoLimitStore(self.aws("dynamodb"), table, unknown=unknown)

    def spending(self) -> Spending:
        return self.ledger() if self.settings.ledger_table else NoLedger()

    def ledger(self) -> DynamoLedger:
        from tollgate.adapters.dynamodb_ledger import DynamoLedger

        if not self.settings.ledger_table:
            raise BadSetting("TOLLGATE_LEDGER_TABLE: the name of the ledger's table is missing")
        return DynamoLedger(self.aws("dynamodb"), self.settings.ledger_table)

    def audit(self) -> AuditTable:
        from tollgate.adapters.audit_table import AuditTable

        if not self.settings.audit_table:
            raise BadSetting("TOLLGATE_AUDIT_TABLE: the name of the audit log's table is missing")
        return AuditTable(self.aws("dynamodb"), self.settings.audit_table)

    def secrets(self) -> Secrets:
        from tollgate.adapters.provider_keys import ProviderKeys

        return ProviderKeys(self.aws("secretsmanager"))

    def administrators(self) -> Administrators | None:
        pool = self.settings.environ.get("TOLLGATE_USER_POOL_ID")
        if not pool:
            return None
        from tollgate.adapters.pool_administrators import PoolAdministrators

        return PoolAdministrators.of(pool, self.settings.environ, self.http)

    async def sign(self, upstream: UpstreamSpec, url: str, headers: Sequence[Header], body: bytes) -> list[Header]:
        """Headers with the signature of this process's own role, for Bedrock. Raises `SecretUnavailable`."""
        from tollgate.adapters.aws import AwsError, CredentialSource
        from tollgate.adapters.sigv4 import signed_headers

        if self._role is None:
            self._role = CredentialSource(self.settings.environ)
        try:
            credentials = await self._role.get()
        except AwsError as error:
            raise SecretUnavailable(str(error)) from error
        region = upstream.region or self.settings.region
        return signed_headers(
            "POST", url, headers, body, service="bedrock", region=region, credentials=credentials, now_s=time.time()
        )

    async def warm(self) -> None:
        """Connect to the stores before the first request does: to the one that stands by, too."""
        for store in self._stores:
            await store.warm()

    async def aclose(self) -> None:
        for store in self._stores:
            await store.aclose()
        await self.http.aclose()
