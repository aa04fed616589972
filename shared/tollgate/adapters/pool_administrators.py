"""Who administers now, as the user pool knows it: a token tells who did when it was issued."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http import HttpClient, UpstreamError
from tollgate.adapters.lru import Lru
from tollgate.ports import AdministratorsUnavailable

KEPT_S = 20.0
"""How long an answer is believed. Administrators are few and read pages by hand: two calls in that time, for each."""
MAX_KEPT = 1000
PAGE = 60
"""The most groups or users that Cognito lists at once."""


class PoolAdministrators:
    """Those users of one pool who are in one of the groups, and not disabled. Belongs to one event loop."""

    def __init__(
        self, cognito: AwsClient, pool: str, groups: Collection[str], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._cognito = cognito
        self._pool = pool
        self._groups = frozenset(groups)
        self._clock_s = clock_s
        self._kept: Lru[tuple[bool, float]] = Lru(MAX_KEPT)

    @classmethod
    def of(cls, pool: str, environ: Mapping[str, str], http: HttpClient) -> PoolAdministrators:
        """Of a pool, which is in the region that its id begins with."""
        there = {**environ, "AWS_REGION": pool.partition("_")[0]}
        groups = [name.strip() for name in environ.get("TOLLGATE_ADMIN_GROUPS", "").split(",")]
        return cls(AwsClient.for_service("cognito-idp", http, there), pool, [name for name in groups if name])

    async def include(self, pool_user: str) -> bool:
        found, until = self._kept.get(pool_user, (False, 0.0))
        if self._clock_s() >= until:
            try:
                found = await self._ask(pool_user)
            except (AwsError, UpstreamError) as error:
                raise AdministratorsUnavailable(str(error)) from error
            self._kept.put(pool_user, (found, self._clock_s() + KEPT_S))
        return found

    async def _ask(self, pool_user: str) -> bool:
        named: dict[str, Any] = {"UserPoolId": self._pool, "Username": pool_user}
        try:
            if (await self._cognito.call("AdminGetUser", named, retry=True)).get("Enabled") is not True:
                return False
            more: dict[str, Any] = {"Limit": PAGE}
            while True:
                page = await self._cognito.call("AdminListGroupsForUser", named | more, retry=True)
                if not self._groups.isdisjoint(group["GroupName"] for group in page["Groups"]):
                    return True
                if not (following := page.get("NextToken")):
                    return False
                more["NextToken"] = following
        except AwsError as error:
            if error.code == "UserNotFoundException":
                return False
            raise
