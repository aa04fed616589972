"""The only place that wires the kinds of credentials. Apart from `bootstrap.py`, because the authorizer function starts
cold in front of a caller and needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from tollgate.adapters.aws_blocking import CredentialsOf
from tollgate.adapters.jwks import Jwks, emulator_hosts
from tollgate.adapters.key_records import DynamoKeyRecords
from tollgate.domain.issuer_settings import issuers, whole
from tollgate.services.api_keys import KeyVerifier
from tollgate.services.authorize import FORGED_PER_MINUTE, Authenticator, Verifier
from tollgate.services.tokens import TokenVerifier

REVOKED_WITHIN_S = 60
"""How late a revoked API key is felt at most, wherever the gateway runs and whatever is away: all that remembers who
calls shares this time (docs/adr/0040)."""
ANSWERED_WITHIN_S = 10
"""The authorizer function's timeout: API Gateway begins to remember an answer at most this long after the function has
begun to look for it."""
MAX_CACHE_S = REVOKED_WITHIN_S - ANSWERED_WITHIN_S
"""For how long API Gateway may remember."""
CACHE_VARIABLE = "TOLLGATE_AUTHORIZER_CACHE_SECONDS"


def bridged_s(environ: Mapping[str, str], cached_s: int = 0) -> int:
    """How long a record of an API key serves while its table does not answer: what is left of `REVOKED_WITHIN_S` by
    whoever remembers the answer, this process for `cached_s` seconds or else API Gateway. Raises `ValueError`."""
    if cached_s:
        return REVOKED_WITHIN_S - cached_s
    return MAX_CACHE_S - whole(environ, CACHE_VARIABLE, MAX_CACHE_S, most=MAX_CACHE_S)


def authenticator(
    environ: Mapping[str, str], credentials: CredentialsOf | None = None, *, cached_s: int = 0
) -> Authenticator:
    """What the environment's TOLLGATE_* variables ask for. Raises `ValueError` that names a bad one.

    `credentials` sign calls to AWS, where the environment's own do not. `cached_s`: how long this process itself may
    believe what it read of an API key; 0 where API Gateway, in front of it, remembers its answers.
    """
    verifiers: list[Verifier] = []
    if (records := DynamoKeyRecords.from_env(environ, credentials)) is not None:
        verifiers.append(KeyVerifier(records, remember_s=cached_s, outage_s=bridged_s(environ, cached_s)))
    emulated = emulator_hosts(environ)
    verifiers.append(TokenVerifier((it, Jwks(it.jwks_url, http_hosts=emulated)) for it in issuers(environ)))
    forged = whole(environ, "TOLLGATE_FORGED_TOKENS_PER_MINUTE", FORGED_PER_MINUTE, least=1)
    return Authenticator(verifiers, forged_per_minute=forged)
