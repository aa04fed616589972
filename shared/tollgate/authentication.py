"""The only place that wires the kinds of credentials. Apart from `bootstrap.py`, because the authorizer function starts
cold in front of a caller and needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from tollgate.adapters.jwks import Jwks, emulator_hosts
from tollgate.services.authorize import FORGED_PER_MINUTE, Authenticator
from tollgate.services.tokens import TokenRules, TokenVerifier, whole


def authenticator(environ: Mapping[str, str]) -> Authenticator:
    """What the environment's TOLLGATE_* variables ask for. Raises `ValueError` that names a bad one."""
    rules = TokenRules.from_env(environ)
    tokens = TokenVerifier(rules, Jwks(rules.jwks_url, http_hosts=emulator_hosts(environ)))
    forged = whole(environ, "TOLLGATE_FORGED_TOKENS_PER_MINUTE", FORGED_PER_MINUTE)
    if forged < 1:
        raise ValueError("TOLLGATE_FORGED_TOKENS_PER_MINUTE: expected at least 1")
    return Authenticator([tokens], forged_per_minute=forged)
