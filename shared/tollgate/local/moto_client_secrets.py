"""What moto's Cognito lacks: a second secret for an app client, so that secrets can be rotated with an overlap.

AddUserPoolClientSecret, ListUserPoolClientSecrets and DeleteUserPoolClientSecret, as Cognito has them: two secrets at
most, one at least, and a value that is told only when it is made.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

MOST = 2


def install() -> None:
    """Change moto in this process. Doing it twice changes nothing."""
    from moto.cognitoidp.responses import CognitoIdpResponse

    response: Any = CognitoIdpResponse
    response.add_user_pool_client_secret = _add
    response.list_user_pool_client_secrets = _list
    response.delete_user_pool_client_secret = _delete


def _add(self: Any) -> str:
    from moto.cognitoidp.exceptions import InvalidParameterException

    client, known = _known(self)
    if len(known) >= MOST:
        raise InvalidParameterException("the app client has two secrets already")
    made = self.parameters.get("ClientSecret") or secrets.token_urlsafe(38)
    entry = {"ClientSecretId": f"{client.id}--{time.time_ns()}", "ClientSecretCreateDate": time.time()}
    known.append(entry)
    return _said({"ClientSecretDescriptor": {**entry, "ClientSecretValue": made}})


def _list(self: Any) -> str:
    return _said({"ClientSecrets": _known(self)[1]})


def _delete(self: Any) -> str:
    from moto.cognitoidp.exceptions import InvalidParameterException, ResourceNotFoundError

    _, known = _known(self)
    gone = [entry for entry in known if entry["ClientSecretId"] == self.parameters["ClientSecretId"]]
    if not gone:
        raise ResourceNotFoundError("there is no such secret")
    if len(known) == 1:
        raise InvalidParameterException("the last secret of an app client cannot be deleted")
    known.remove(gone[0])
    return _said({})


def _known(self: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The app client, and what is known of its secrets; the first one came with it."""
    client = self.backend.describe_user_pool_client(self.parameters["UserPoolId"], self.parameters["ClientId"])
    if not hasattr(client, "tollgate_secrets"):
        first = {"ClientSecretId": f"{client.id}--0", "ClientSecretCreateDate": 0.0}
        client.tollgate_secrets = [first] if client.secret else []
    return client, client.tollgate_secrets


def _said(answer: dict[str, Any]) -> str:
    import json

    return json.dumps(answer)
