"""The only place that wires the kinds of credentials. Apart from `bootstrap.py`, because the authorizer function starts
cold in front of a caller and needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from tollgate.adapters.jwks import Jwks, emulator_hosts
from tollgate.domain.issuer_settings import issuers, whole
from tollgate.services.authorize import FORGED_PER_MINUTE, Authenticator
from tollgate.services.tokens import TokenVerifier


def authenticator(environ: Mapping[str, str]) -> Authenticator:
    """What the environment's TOLLGATE_* variables ask for. Raises `ValueError` that names a bad one."""
    emulated = emulator_hosts(environ)
    tokens = TokenVerifier((issuer, Jwks(issuer.jwks_url, http_hosts=emulated)) for issuer in issuers(environ))
    forged = whole(environ, "TOLLGATE_FORGED_TOKENS_PER_MINUTE", FORGED_PER_MINUTE, least=1)
    return Authenticator([tokens], forged_per_minute=forged)
