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
"""How late a revoked API key is felt at most, wherever the gateway runs. API Gateway keeps its own answers for as long,
so nothing of it is left on Lambda: only there, and only while the table cannot be read, a key that was good is good
for as long once more."""


def authenticator(
    environ: Mapping[str, str], credentials: CredentialsOf | None = None, *, cached_s: int = 0
) -> Authenticator:
    """What the environment's TOLLGATE_* variables ask for. Raises `ValueError` that names a bad one.

    `credentials` sign calls to AWS, where the environment's own do not. `cached_s`: how long this process itself may
    believe what it read of an API key; 0 where somebody in front of it (API Gateway) remembers its answers.
    """
    verifiers: list[Verifier] = []
    if (records := DynamoKeyRecords.from_env(environ, credentials)) is not None:
        outage_s = REVOKED_WITHIN_S - cached_s
        verifiers.append(KeyVerifier(records, remember_s=cached_s, outage_s=outage_s))
    emulated = emulator_hosts(environ)
    verifiers.append(TokenVerifier((it, Jwks(it.jwks_url, http_hosts=emulated)) for it in issuers(environ)))
    forged = whole(environ, "TOLLGATE_FORGED_TOKENS_PER_MINUTE", FORGED_PER_MINUTE, least=1)
    return Authenticator(verifiers, forged_per_minute=forged)
