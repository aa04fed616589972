"""What narrows an API key down: models, routes, and limits and budgets of its own.

It travels with the identity as one text (canonical JSON), from the key's record through the authorizer's answer to
the proxy, so that admission needs no look-up for it. Only operators write it. It takes from what the tenant's plan
allows and never adds to it, but for limits of scope ``key``: they replace the plan's of the same kind, as a tenant's
own do.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Literal

from tollgate.domain.identity import MAX_RESTRICTIONS
from tollgate.domain.limits import Scope
from tollgate.domain.policy import BudgetSpec, LimitSpec, Name
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document, Place, jsonable
from tollgate.domain.schema import Count, Spec, plain

Route = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/models",
    "/v1/usage",
    "/model",
]
"""And what is below it: ``/v1/models/small``; ``/model/small/converse`` is Bedrock's own API."""


def _of_the_key(spec: LimitSpec | BudgetSpec) -> LimitSpec | BudgetSpec:
    if spec.scope is not Scope.KEY:
        raise ValueError(f"a key's own limits have the scope key, not {spec.scope}")
    return spec


class Restrictions(Spec):
    """A field that is absent restricts nothing."""

    models: Annotated[tuple[Name, ...], Count(1, 64)] | None = None
    routes: Annotated[tuple[Route, ...], Count(1, 16)] | None = None
    limits: tuple[Annotated[LimitSpec, _of_the_key], ...] = ()
    budgets: tuple[Annotated[BudgetSpec, _of_the_key], ...] = ()

    def check(self) -> None:
        for name, specs in (("limits", self.limits), ("budgets", self.budgets)):
            ids = [spec.id for spec in specs]
            if len(set(ids)) < len(ids):
                raise ValueError(f"{name} has two entries of one kind")

    def allows_model(self, model: str) -> bool:
        return self.models is None or model in self.models

    def allows_route(self, path: str) -> bool:
        if self.routes is None:
            return True
        return any(path == route or path.startswith(f"{route}/") for route in self.routes)

    def text(self) -> str:
        """As it travels; empty where nothing is restricted. Raises `ValueError` for what would be too long."""
        said = {name: value for name, value in plain(self).items() if value}
        text = json.dumps(jsonable(said), separators=(",", ":"), sort_keys=True) if said else ""
        if len(text) > MAX_RESTRICTIONS:
            raise ValueError(f"a key's restrictions take at most {MAX_RESTRICTIONS} characters, not {len(text)}")
        return text


NONE = Restrictions()


@lru_cache(maxsize=4096)
def restrictions(text: str) -> Restrictions:
    """What a text of `Restrictions.text` says. Raises `PolicyErrors` for any other: nobody may call with that."""
    if not text:
        return NONE
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return check_record(Restrictions, Document(value, places={(): Place("the key's restrictions")}))
