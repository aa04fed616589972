"""The limit store that a redis:// or rediss:// URL means: one node or a cluster, with a password or IAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tollgate.adapters.redis_connection import RedisAddress
from tollgate.adapters.redis_limits import RedisLimitStore

if TYPE_CHECKING:
    from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore


def redis_limit_store(url: str, environ: Mapping[str, str]) -> RedisLimitStore | RedisClusterLimitStore:
    """Raises ValueError for a URL that means nothing; `environ` says which AWS credentials and region to use."""
    address = RedisAddress.parse(url)
    login = None
    if address.iam is not None:
        from tollgate.adapters.redis_iam import iam_login

        login = iam_login(address, environ)
    if address.cluster:
        from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore

        return RedisClusterLimitStore(url, login=login)
    return RedisLimitStore(url, login=login)
