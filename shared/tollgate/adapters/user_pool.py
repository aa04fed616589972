"""People and machines in a Cognito user pool, for the `tollgate` command; through a boto3 client that it makes.

Whose tenant they belong to is ours to say: of a person in the attribute `custom:tenant`, which no app client may
write; of a machine's app client in an item of the tenants table (`client_items`).
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tollgate.adapters.pool_administrators import PAGE
from tollgate.adapters.tenants_table import Conflict, NotFound
from tollgate.domain.identity import names_of_pool_user

SCOPES = ("tollgate/invoke", "tollgate/models.read", "tollgate/usage.read")
"""What a machine's tokens are for, unless somebody says less."""
TOKEN_MINUTES = 60
_PASSWORD_PARTS = (string.ascii_uppercase, string.ascii_lowercase, string.digits, "-_.:+=")


class User(NamedTuple):
    """A person of a tenant. `status` is Cognito's (CONFIRMED, FORCE_CHANGE_PASSWORD ...)."""

    user: str
    sub: str
    """What their tokens call them."""
    tenant: str
    team: str
    email: str
    status: str
    enabled: bool
    created: str
    """ISO, UTC; to the second."""

    @property
    def names(self) -> frozenset[str]:
        """What they are called as a caller."""
        return names_of_pool_user(self.user, self.sub, self.tenant)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> User:
        """From any of Cognito's answers."""
        listed = found.get("Attributes") or found.get("UserAttributes") or ()
        attributes = {attribute["Name"]: attribute["Value"] for attribute in listed}
        created: datetime = found["UserCreateDate"]
        return cls(
            user=found["Username"],
            sub=attributes.get("sub", ""),
            tenant=attributes.get("custom:tenant", ""),
            team=attributes.get("custom:team", ""),
            email=attributes.get("email", ""),
            status=found.get("UserStatus", ""),
            enabled=found["Enabled"],
            created=created.astimezone(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z"),
        )


class Secret(NamedTuple):
    """One of the secrets of an app client; Cognito tells its value only when it is made."""

    id: str
    created: str


class UserPool:
    """One user pool. Cognito's own refusals are raised as botocore raises them."""

    def __init__(self, cognito: Any, pool: str) -> None:
        self._cognito = cognito
        self._pool = pool

    # -- people ----------------------------------------------------------------------------------------------------

    def user(self, name: str) -> User:
        """Raises `NotFound`."""
        try:
            return User.of(self._cognito.admin_get_user(UserPoolId=self._pool, Username=name))
        except self._cognito.exceptions.UserNotFoundException:
            raise NotFound(f"there is no user {name!r}: see `tollgate user list`") from None

    def find(self, name: str, tenant: str | None) -> User | None:
        """The user of that name; of `tenant`, if one is given, and then None where the pool knows no such user.
        Raises `NotFound`."""
        if tenant is None:
            return self.user(name)
        for known_as in (f"{tenant}/{name}", name):
            with suppress(NotFound):
                found = self.user(known_as)
                if found.tenant == tenant:
                    return found
        return None

    def users(self) -> Iterator[User]:
        """Everybody, a page at a time."""
        more: dict[str, str] = {}
        while True:
            answer = self._cognito.list_users(UserPoolId=self._pool, Limit=PAGE, **more)
            yield from map(User.of, answer["Users"])
            if not answer.get("PaginationToken"):
                return
            more = {"PaginationToken": answer["PaginationToken"]}

    def create_user(self, name: str, tenant: str, team: str, email: str, *, invite: bool) -> tuple[User, str | None]:
        """The user, and their first password if Cognito does not send it (`invite`: by email).

        A user who is there already and says the same stays as they are. Raises `Conflict` if they say something else.
        """
        attributes = {"custom:tenant": tenant, "custom:team": team, "email": email}
        if email:
            attributes["email_verified"] = "true"  # an operator says so; the invitation goes there
        password = None if invite else first_password()
        delivery = {"DesiredDeliveryMediums": ["EMAIL"]} if invite else {"MessageAction": "SUPPRESS"}
        try:
            answer = self._cognito.admin_create_user(
                UserPoolId=self._pool,
                Username=name,
                UserAttributes=[{"Name": key, "Value": value} for key, value in attributes.items() if value],
                **({"TemporaryPassword": password} if password else {}),
                **delivery,
            )
        except self._cognito.exceptions.UsernameExistsException:
            found = self.user(name)
            if (found.tenant, found.team, found.email) != (tenant, team, email):
                whose = f"of tenant {found.tenant!r}" + (f", team {found.team!r}" if found.team else "")
                raise Conflict(f"there is a user {name!r} already, {whose}, with {found.email or 'no email'}") from None
            return found, None
        return User.of(answer["User"]), password

    def groups(self, name: str) -> list[str]:
        """The groups that a user is in."""
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            answer = self._cognito.admin_list_groups_for_user(UserPoolId=self._pool, Username=name, Limit=PAGE, **more)
            found += [group["GroupName"] for group in answer["Groups"]]
            if not answer.get("NextToken"):
                return sorted(found)
            more = {"NextToken": answer["NextToken"]}

    def add_to_group(self, name: str, group: str) -> None:
        self._cognito.admin_add_user_to_group(UserPoolId=self._pool, Username=name, GroupName=group)

    def remove_from_group(self, name: str, group: str) -> None:
        """One who is not in it stays so."""
        self._cognito.admin_remove_user_from_group(UserPoolId=self._pool, Username=name, GroupName=group)

    def set_enabled(self, name: str, enabled: bool) -> User:
        """Let a user sign in, or not; who may not is signed out everywhere. Raises `NotFound`."""
        self.user(name)
        if enabled:
            self._cognito.admin_enable_user(UserPoolId=self._pool, Username=name)
        else:
            self._cognito.admin_disable_user(UserPoolId=self._pool, Username=name)
            self._cognito.admin_user_global_sign_out(UserPoolId=self._pool, Username=name)
        return self.user(name)

    def remove_user(self, name: str) -> None:
        """Raises `NotFound`."""
        self.user(name)
        self._cognito.admin_delete_user(UserPoolId=self._pool, Username=name)

    # -- machines --------------------------------------------------------------------------------------------------

    def create_client(self, name: str, scopes: tuple[str, ...] = SCOPES) -> tuple[str, str]:
        """The id and the secret of a new app client that gets tokens for itself (client credentials)."""
        answer = self._cognito.create_user_pool_client(
            UserPoolId=self._pool,
            ClientName=name,
            GenerateSecret=True,
            AllowedOAuthFlowsUserPoolClient=True,
            AllowedOAuthFlows=["client_credentials"],
            AllowedOAuthScopes=list(scopes),
            ExplicitAuthFlows=["ALLOW_REFRESH_TOKEN_AUTH"],  # none of the password flows
            AccessTokenValidity=TOKEN_MINUTES,
            TokenValidityUnits={"AccessToken": "minutes"},
        )["UserPoolClient"]
        return answer["ClientId"], answer["ClientSecret"]

    def has_client(self, client_id: str) -> bool:
        try:
            self._cognito.describe_user_pool_client(UserPoolId=self._pool, ClientId=client_id)
        except self._cognito.exceptions.ResourceNotFoundException:
            return False
        return True

    def secrets(self, client_id: str) -> list[Secret]:
        """The secrets that a client can use now, the oldest first: Cognito keeps two at most."""
        answer = self._cognito.list_user_pool_client_secrets(UserPoolId=self._pool, ClientId=client_id)
        found = [
            Secret(entry["ClientSecretId"], entry["ClientSecretCreateDate"].astimezone(UTC).isoformat())
            for entry in answer["ClientSecrets"]
        ]
        return sorted(found, key=lambda secret: secret.created)

    def add_secret(self, client_id: str) -> str:
        """A new secret, beside the one that there is."""
        answer = self._cognito.add_user_pool_client_secret(UserPoolId=self._pool, ClientId=client_id)
        return str(answer["ClientSecretDescriptor"]["ClientSecretValue"])

    def end_secret(self, client_id: str, secret: Secret) -> None:
        self._cognito.delete_user_pool_client_secret(
            UserPoolId=self._pool, ClientId=client_id, ClientSecretId=secret.id
        )

    def delete_client(self, client_id: str) -> None:
        """One that is gone already is no error."""
        try:
            self._cognito.delete_user_pool_client(UserPoolId=self._pool, ClientId=client_id)
        except self._cognito.exceptions.ResourceNotFoundException:
            return


def first_password() -> str:
    """About 120 random bits, with a character of every kind that a pool can ask for."""
    needed = [secrets.choice(part) for part in _PASSWORD_PARTS]
    more = [secrets.choice("".join(_PASSWORD_PARTS)) for _ in range(18)]
    password = [*needed, *more]
    secrets.SystemRandom().shuffle(password)
    return "".join(password)
