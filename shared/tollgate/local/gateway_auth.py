"""How API Gateway uses an authorizer: whom it asks, how long it remembers, and how it reads the policy it gets.

The rules that matter to this project and that a stand-in must therefore keep: a request without the identity source
never reaches the function; the answer is remembered per value of the identity source and applied to every route;
the policy is matched against the route's ARN, an explicit Deny wins, and what no statement allows is refused.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

CACHE_S = 20
"""How long a policy is remembered: the template's default, in seconds."""
MAX_REMEMBERED = 10_000
ACTION = "execute-api:Invoke"

Authorize = Callable[[Mapping[str, Any]], Awaitable[Any]]


class Denied(Exception):
    """The caller may not use this route (403)."""


class NotAuthenticated(Exception):
    """The authorizer does not know the caller (401)."""


class AuthorizerFailed(Exception):
    """The authorizer broke, or answered what API Gateway does not accept (500)."""


@dataclass(frozen=True)
class Answer:
    """What the authorizer said: a policy, and what the integration gets to see of it."""

    statements: tuple[Mapping[str, Any], ...]
    context: Mapping[str, Any]

    @classmethod
    def of(cls, result: Any) -> Answer:
        """Read a handler's result as strictly as API Gateway does. Raises `AuthorizerFailed`."""
        if not isinstance(result, Mapping) or not isinstance(result.get("principalId"), str):
            raise AuthorizerFailed("the authorizer's answer has no principalId")
        document = result.get("policyDocument")
        statements = document.get("Statement") if isinstance(document, Mapping) else None
        if not isinstance(statements, list) or not all(isinstance(s, Mapping) for s in statements):
            raise AuthorizerFailed("the authorizer's answer has no policyDocument with a list of statements")
        context = result.get("context") or {}
        for name, value in context.items():
            if not isinstance(value, str | int | float | bool):
                raise AuthorizerFailed(f"the authorizer's context is not flat: {name} is {type(value).__name__}")
        # numbers and booleans reach the integration as text
        flat = {name: _text(value) for name, value in context.items()}
        return cls(tuple(statements), {**flat, "principalId": result["principalId"]})

    def allows(self, arn: str) -> bool:
        """Whether the policy lets its caller invoke the method with this ARN."""
        effects = [s.get("Effect") for s in self.statements if _applies(s, arn)]
        return "Allow" in effects and "Deny" not in effects


class Authorizer:
    """A REQUEST authorizer with one identity source and a cache."""

    def __init__(
        self, invoke: Authorize, *, cache_s: float = CACHE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._invoke = invoke
        self._cache_s = cache_s
        self._clock = clock
        self._remembered: OrderedDict[str, tuple[Answer, float]] = OrderedDict()

    async def check(self, identity_source: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The context for the integration. Raises `NotAuthenticated`, `Denied` or `AuthorizerFailed`."""
        answer = self._recall(identity_source)
        if answer is None:
            answer = await self._ask(event)
            self._remember(identity_source, answer)
        if not answer.allows(event["methodArn"]):
            raise Denied
        return answer.context

    async def _ask(self, event: Mapping[str, Any]) -> Answer:
        try:
            result = await self._invoke(event)
        except Exception as error:
            # the one message that API Gateway understands; it must be exactly this
            if str(error) == "Unauthorized":
                raise NotAuthenticated from None
            raise AuthorizerFailed(f"{type(error).__name__}: {error}") from error
        return Answer.of(result)

    def _recall(self, identity_source: str) -> Answer | None:
        found = self._remembered.get(identity_source)
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    def _remember(self, identity_source: str, answer: Answer) -> None:
        self._remembered[identity_source] = (answer, self._clock() + self._cache_s)
        self._remembered.move_to_end(identity_source)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _applies(statement: Mapping[str, Any], arn: str) -> bool:
    actions, resources = _list(statement.get("Action")), _list(statement.get("Resource"))
    return any(_glob(a.lower()).fullmatch(ACTION.lower()) for a in actions) and any(
        _glob(resource).fullmatch(arn) for resource in resources
    )


def _list(value: Any) -> list[str]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """IAM's wildcards: ``*`` is any characters, also slashes, ``?`` is one."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)
