"""Which stack a command talks to, and how.

The first of these that there is: `--stack` or TOLLGATE_STACK (a CloudFormation stack by its name, a local stack by
its URL); the local stack at TOLLGATE_URL; the deployed stack whose tables the environment names; the newest local
stack. `--profile` and `--region` are AWS's own; they always mean a deployed stack.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tollgate.cli.failures import NOT_FOUND, UNREACHABLE, USAGE, Fail

if TYPE_CHECKING:
    from tollgate.adapters.audit_table import AuditTable
    from tollgate.adapters.aws import AwsClient
    from tollgate.adapters.dynamodb_ledger import DynamoLedger
    from tollgate.adapters.http import HttpClient
    from tollgate.adapters.keys_table import KeysTable
    from tollgate.adapters.policy_tables import PolicyTables

T = TypeVar("T")

TABLES = ("TOLLGATE_POLICY_TABLE", "TOLLGATE_TENANTS_TABLE")
STACK_VARIABLE = "TOLLGATE_STACK"
URL_VARIABLE = "TOLLGATE_URL"
ENVIRONMENT_OUTPUT = "Environment"
"""The output of template.yaml that has the stack's variables: ``NAME=VALUE``, separated by spaces."""

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
_PROFILES = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CHOICES = "tollgate.cli.connect"


# -- the options -------------------------------------------------------------------------------------------------------


class ConnectionOption(click.Option):
    """One of those that all commands have which talk to a stack."""

    def __init__(self, name: str, metavar: str, help: str) -> None:
        super().__init__([name], metavar=metavar, help=help, expose_value=False, callback=_choose)


def connection_options() -> list[ConnectionOption]:
    """`--stack`, `--profile` and `--region`, for the command itself and for all that talk to a stack."""
    return [
        ConnectionOption("--stack", "NAME|URL", "The stack: a CloudFormation stack's name, or a local stack's URL."),
        ConnectionOption("--profile", "NAME", "The AWS profile."),
        ConnectionOption("--region", "NAME", "The AWS region."),
    ]


def _choose(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[f"{_CHOICES}.{param.name}"] = value


class _Choice(NamedTuple):
    stack: str | None
    """A CloudFormation stack's name."""
    url: str | None
    """A local stack's."""
    profile: str | None
    region: str | None

    @property
    def deployed(self) -> bool:
        """Whether only a deployed stack can be meant."""
        return bool(self.stack or self.profile or self.region)


def _choice() -> _Choice:
    ctx = click.get_current_context(silent=True)
    meta: Mapping[str, Any] = {} if ctx is None else ctx.meta
    profile, region = meta.get(f"{_CHOICES}.profile"), meta.get(f"{_CHOICES}.region")
    stack = meta.get(f"{_CHOICES}.stack") or os.environ.get(STACK_VARIABLE)
    if stack and stack.startswith(("http://", "https://")):
        if profile or region:
            raise Fail(f"{stack} is a local stack: --profile and --region mean a deployed one", USAGE)
        return _Choice(None, stack, None, None)
    # what was named leaves no room for a URL from the environment
    named = stack or profile or region
    return _Choice(stack or None, None if named else os.environ.get(URL_VARIABLE) or None, profile, region)


# -- the environment of a stack ----------------------------------------------------------------------------------------


def local_stack() -> dict[str, str] | None:
    """The variables of the local stack to talk to; None if a deployed one is meant, or none runs."""
    from tollgate.local.discovery import find

    choice = _choice()
    if choice.url is None and (choice.deployed or all(os.environ.get(name) for name in TABLES)):
        return None
    return find({**os.environ, URL_VARIABLE: choice.url or ""})


def environment(needs: tuple[str, ...] = TABLES) -> dict[str, str]:
    """The environment of the stack to talk to. Raises `Fail` where there is none."""
    local = local_stack()
    if local is not None:
        # nothing of the terminal's own AWS may lead elsewhere
        strange = (*_KEYS, *_PROFILES) if _KEYS[0] in local else ()
        own = {n: v for n, v in os.environ.items() if not n.startswith("AWS_ENDPOINT_URL") and n not in strange}
        return {**own, **local}
    choice = _choice()
    environ = _terminal(choice)
    if choice.stack is not None:
        return _of_stack(choice.stack, environ)
    missing = [name for name in needs if not environ.get(name)]
    if missing:
        if choice.deployed:
            raise Fail(f"which stack? Add --stack NAME ({missing[0]} is not set either)", USAGE)
        where = f"no local stack runs at {choice.url}" if choice.url else "no local stack is running"
        raise Fail(
            f"{where} and {missing[0]} is not set: start `tollgate dev`, or name a deployed stack with --stack",
            UNREACHABLE,
        )
    return _with_region(environ) if needs else environ


def _terminal(choice: _Choice) -> dict[str, str]:
    """This terminal's environment, with what the options say. A profile that is named wins over keys in variables."""
    environ = dict(os.environ)
    if choice.profile:
        environ = {name: value for name, value in environ.items() if name not in (*_KEYS, *_PROFILES)}
        environ["AWS_PROFILE"] = choice.profile
    if choice.region:
        environ["AWS_REGION"] = choice.region
    return environ


def _with_region(environ: dict[str, str]) -> dict[str, str]:
    """The profile's region, where no variable names one. A guess would look for tables where there are none."""
    if any(environ.get(name) for name in _REGIONS) or environ.get("AWS_ENDPOINT_URL"):
        return environ
    region = _botocore(environ).get_config_variable("region")
    if not region:
        raise Fail("no AWS region is set: add --region, or set AWS_REGION", USAGE)
    return {**environ, "AWS_REGION": region}


def _of_stack(name: str, environ: dict[str, str]) -> dict[str, str]:
    """The environment of a CloudFormation stack, from its outputs. Other stacks' variables in this terminal do not
    mix with them."""
    from botocore.exceptions import ClientError

    environ = _with_region({n: v for n, v in environ.items() if not n.startswith("TOLLGATE_")})
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    try:
        found = boto("cloudformation", environ).describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in str(error):
            raise Fail(f"there is no stack {name!r} in {region}: see --region and --profile", NOT_FOUND) from None
        raise
    outputs = {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}
    if ENVIRONMENT_OUTPUT not in outputs:
        state = found.get("StackStatus", "?")
        raise Fail(f"the stack {name!r} ({state}) has no output {ENVIRONMENT_OUTPUT}: is it a Tollgate, deployed?")
    pairs = (word.partition("=") for word in outputs[ENVIRONMENT_OUTPUT].split())
    return environ | {variable: value for variable, _, value in pairs if variable.startswith("TOLLGATE_")}


# -- talking to it -----------------------------------------------------------------------------------------------------


class Stack:
    """A stack's AWS services, through the gateway's own client, for one command."""

    def __init__(self, environ: Mapping[str, str], http: HttpClient) -> None:
        self.environ = environ
        self.http = http

    def service(self, name: str) -> AwsClient:
        """`name` as for `AwsClient.for_service`."""
        from tollgate.adapters.aws import PATIENT, AwsClient

        return AwsClient.for_service(name, self.http, self.environ, PATIENT)

    def tables(self) -> PolicyTables:
        from tollgate.adapters.policy_tables import PolicyTables

        policy, tenants = (self.environ[name] for name in TABLES)
        return PolicyTables(self.service("dynamodb"), policy, tenants)

    def ledger(self) -> DynamoLedger:
        from tollgate.adapters.dynamodb_ledger import DynamoLedger

        return DynamoLedger(self.service("dynamodb"), self.environ["TOLLGATE_LEDGER_TABLE"])

    def keys(self) -> KeysTable:
        import time

        from tollgate.adapters.keys_table import KeysTable
        from tollgate.adapters.peppers import Peppers

        table, pepper = self.environ.get("TOLLGATE_KEYS_TABLE"), self.environ.get("TOLLGATE_KEY_PEPPER")
        if not table or not pepper:
            raise Fail("this stack has no table of API keys: it is older than they are", NOT_FOUND)
        return KeysTable(self.service("dynamodb"), table, Peppers(self.service("secretsmanager"), pepper), time.time)

    def audit(self) -> AuditTable:
        from tollgate.adapters.audit_table import AuditTable

        return AuditTable(self.service("dynamodb"), self.environ["TOLLGATE_AUDIT_TABLE"])


def with_stack(operation: Callable[[Stack], Awaitable[T]], needs: tuple[str, ...] = TABLES) -> T:
    """Run an operation on the stack to talk to, of which the variables `needs` must be known."""
    environ = environment(needs)
    return with_http(lambda http: operation(Stack(environ, http)))


def with_tables(operation: Callable[[PolicyTables], Awaitable[T]]) -> T:
    """Run an operation on the tables of the stack to talk to."""
    return with_stack(lambda stack: operation(stack.tables()))


def with_http(operation: Callable[[HttpClient], Awaitable[T]]) -> T:
    import asyncio

    from tollgate.adapters.http import HttpClient

    async def run() -> T:
        http = HttpClient()
        try:
            return await operation(http)
        finally:
            await http.aclose()

    return asyncio.run(run())


def boto(service: str, environ: Mapping[str, str] | None = None) -> Any:
    """A boto3 client of the stack to talk to, for services that the gateway itself does not call. Takes 300 ms."""
    import boto3
    from botocore.config import Config

    environ = environment(()) if environ is None else environ
    keys = {
        "aws_access_key_id": environ.get("AWS_ACCESS_KEY_ID"),
        "aws_secret_access_key": environ.get("AWS_SECRET_ACCESS_KEY"),
        "aws_session_token": environ.get("AWS_SESSION_TOKEN"),
    }
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    session = boto3.Session(botocore_session=_botocore(environ), region_name=region, **keys)
    config = Config(connect_timeout=3, read_timeout=20, retries={"total_max_attempts": 3, "mode": "standard"})
    return session.client(service, endpoint_url=_endpoint(service, environ), config=config)


def _endpoint(service: str, environ: Mapping[str, str]) -> str | None:
    """Where the service is, if it is not AWS's."""
    from tollgate.adapters.aws_environment import endpoint

    if not any(name.startswith("AWS_ENDPOINT_URL") or name == "LOCALSTACK_HOST" for name in environ):
        return None
    return endpoint(service, environ.get("AWS_REGION") or "us-east-1", environ)


def _botocore(environ: Mapping[str, str]) -> Any:
    """A botocore session with the profile that `environ` names, and no other."""
    import botocore.session

    profile = next((environ[name] for name in _PROFILES if environ.get(name)), None)
    if profile is not None and not environ.get("AWS_ACCESS_KEY_ID"):
        return botocore.session.Session(profile=profile)
    return botocore.session.Session(session_vars={"profile": (None, None, profile, None)})


def actor() -> str:
    """Who changes something, as the item that is changed tells the audit log: the AWS caller's ARN, or, of a local
    stack and where AWS does not say, this machine's user."""
    import getpass

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "tollgate"
    if local_stack() is not None:
        return user
    from tollgate.adapters.caller import caller_arn

    return caller_arn(_terminal(_choice())) or f"{user} (not known to AWS)"


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that name it."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield words, command
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from leaves(inner, (*words, name))
