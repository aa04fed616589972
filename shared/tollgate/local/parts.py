"""How the local stack is put together: each part with what it needs, side by side where they do not need each other."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tollgate.adapters.http import HttpClient, Timeouts, UpstreamError
from tollgate.local import demo_policy, discovery, lambda_api, provision
from tollgate.local.aws import aws_child
from tollgate.local.children import START_S, Child, NotStarted, free_port, say
from tollgate.local.demo_model import model_child
from tollgate.local.functions import Function, show_line
from tollgate.local.redis_server import redis_child

if TYPE_CHECKING:
    from tollgate.domain.policy import Policy
    from tollgate.local.api_gateway import Integration
    from tollgate.local.log_pipe import LogPipe
    from tollgate.local.provision import Resources
    from tollgate.local.stack import Options, Ready

REGION = "us-east-1"
USER = "demo"
TOKEN_S = 12 * 3600
DRAIN_S = 20
"""How long requests in flight may go on after SIGTERM."""
PUBLISHED_WITHIN_S = 15.0
PROXY_DRAIN_S = 7
PROXY_STOP_S = PROXY_DRAIN_S + 3.0
ALERTS_EVERY_S = 3.0
"""Alerts are delivered this often; on AWS, every minute."""
RECONCILED_EVERY_S = 30.0
"""Stores are compared with the ledger this often; on AWS, every hour."""
STOP_S = 3.0
"""How long another process may take to end before it is killed, in seconds."""

ANNOUNCED = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_LAMBDA", "AWS_REGION", "AWS_DEFAULT_REGION", "TOLLGATE_INSPECT_FUNCTION",
    "TOLLGATE_STORE_URL", "TOLLGATE_POLICY_TABLE",
    "TOLLGATE_TENANTS_TABLE", "TOLLGATE_LIMITS_TABLE", "TOLLGATE_LEDGER_TABLE", "TOLLGATE_AUDIT_TABLE",
    "TOLLGATE_KEYS_TABLE", "TOLLGATE_KEY_PEPPER", "TOLLGATE_USER_POOL_ID", "TOLLGATE_CLIENT_IDS",
    "TOLLGATE_DEAD_LETTER_QUEUE_URL",
)  # fmt: skip
"""What a command in another terminal needs to reach the parts."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
PERSONAL = frozenset(
    {*CREDENTIALS, "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN"}
)


async def start(options: Options, exits: AsyncExitStack, gave_up: Callable[[], None]) -> Ready:
    """Start everything; what ends it again is pushed on `exits` as it starts. `gave_up` is called later if a part
    is lost that cannot be replaced. Raises `NotStarted`."""
    from tollgate.local.api_gateway import Integration
    from tollgate.local.stack import Ready

    listener = _listen(options.port)
    exits.callback(listener.close)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    environ = dict(os.environ)
    redis, environ["TOLLGATE_STORE_URL"] = _redis(environ)
    endpoint = _aws_endpoint(environ)
    aws_port = 0 if endpoint else free_port()
    environ = _with_aws(environ, endpoint or f"http://127.0.0.1:{aws_port}", embedded=not endpoint)
    aws = aws_child(aws_port, environ, gave_up) if not endpoint else None
    model_port = 0 if options.upstream else free_port()
    model = model_child(model_port, environ) if not options.upstream else None
    model_url = f"http://127.0.0.1:{model_port}/v1"
    # handlers run in this process and read their environment when they are imported or first called
    _set_environ(environ)

    children = [child for child in (redis, aws, model) if child is not None]
    say(f"starting {', '.join(child.name for child in children)}, then the gateway")
    policy, resources, *_ = await _all(
        _load_policy(options, model_url),
        _provision(aws, environ, exits),
        *(_start(child, exits) for child in children if child is not aws),
    )
    environ |= resources.environ()
    _set_environ(environ)

    http = HttpClient()
    exits.push_async_callback(http.aclose)
    functions = {
        name: _function(name, environ, exits)
        for name in ("authorizer", "metering", "publisher", "alerts", "reconciler", "inspect")
    }
    if key := demo_policy.upstream_key(policy, environ):
        await asyncio.to_thread(provision.put_secret, demo_policy.SECRET, key)
    await _all(
        _publish(policy, http, environ, functions["publisher"], exits),
        *(function.load() for function in functions.values()),
    )

    for name, every_s in (("alerts", ALERTS_EVERY_S), ("reconciler", RECONCILED_EVERY_S)):
        exits.callback(asyncio.create_task(_schedule(functions[name], every_s)).cancel)
    inspect = functions["inspect"]
    environ["TOLLGATE_INSPECT_FUNCTION"] = inspect.name
    environ["AWS_ENDPOINT_URL_LAMBDA"] = await lambda_api.serve({inspect.name: inspect}, exits)
    proxy_port = free_port()
    pipe = _log_pipe(environ, functions["metering"], options, exits)
    proxy = await _proxy(proxy_port, environ, pipe, http, exits)
    children.append(proxy)
    proxy_url = f"http://127.0.0.1:{proxy_port}"
    integration = Integration(proxy_url, proxy.serving, environ["AWS_REGION"], report=pipe.report)
    await _gateway(listener, integration, functions["authorizer"], http, exits)
    token, model_name = await _demo_token(policy, http, url)

    announced = {name: environ[name] for name in ANNOUNCED if name in environ}
    announced["TOLLGATE_DEV_MODEL_URL"] = model_url  # `policy apply` sends upstreams there too
    if options.upstream:
        announced["TOLLGATE_DEV_UPSTREAM"] = options.upstream
    if environ.get("AWS_ACCESS_KEY_ID") == CREDENTIALS["AWS_ACCESS_KEY_ID"]:  # never somebody's real ones
        announced |= CREDENTIALS
    exits.callback(discovery.announce(url, announced, environ).close)
    return Ready(
        url=url,
        redis_url=environ["TOLLGATE_STORE_URL"],
        aws_endpoint_url=environ["AWS_ENDPOINT_URL"],
        model_url=demo_policy.upstream_url(options.upstream) if options.upstream else model_url,
        pids={child.name: child.pid for child in children},
        token=token,
        model=model_name,
    )


def _listen(port: int) -> socket.socket:
    """The gateway's socket, bound at once, so that a port that is taken is found before anything starts."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = "is taken: choose another with --port" if isinstance(error, OSError) else "is not from 0 to 65535"
        if isinstance(error, PermissionError):
            reason = "is not for ordinary users: choose one above 1023 with --port"
        raise NotStarted(f"port {port} {reason}") from None
    return listener


def _redis(environ: Mapping[str, str]) -> tuple[Child | None, str]:
    """A Redis of our own, unless the environment names a store; and the store's URL."""
    if given := environ.get("TOLLGATE_STORE_URL") or environ.get("REDIS_URL"):
        return None, given
    port = free_port()
    return redis_child(port, environ), f"redis://127.0.0.1:{port}/0"


def _aws_endpoint(environ: Mapping[str, str]) -> str:
    """An AWS that already runs: AWS_ENDPOINT_URL, or LocalStack as its own client finds it."""
    if given := environ.get("AWS_ENDPOINT_URL"):
        return given
    if host := environ.get("LOCALSTACK_HOST", ""):
        return f"http://{host}" if ":" in host else f"http://{host}:{environ.get('EDGE_PORT') or 4566}"
    return ""


def _with_aws(environ: Mapping[str, str], endpoint: str, *, embedded: bool) -> dict[str, str]:
    """The environment by which every part reaches AWS. With our own, nobody's real credentials, profile or proxy have
    a part in it."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or REGION
    no_proxy = ",".join(filter(None, (environ.get("NO_PROXY") or environ.get("no_proxy"), "127.0.0.1,localhost")))
    given = {name: value for name, value in environ.items() if not embedded or name not in PERSONAL}
    found = {
        **({} if "AWS_PROFILE" in given else CREDENTIALS),
        **given,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    if embedded:
        found |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return found


def _set_environ(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


async def _start(child: Child, exits: AsyncExitStack, stop_s: float = STOP_S) -> None:
    exits.push_async_callback(child.stop, stop_s)
    await child.start()


async def _load_policy(options: Options, model_url: str) -> Policy:
    policy = await asyncio.to_thread(demo_policy.load, options.policy, os.environ)
    return demo_policy.redirect(policy, model_url, options.upstream)


async def _provision(aws: Child | None, environ: Mapping[str, str], exits: AsyncExitStack) -> Resources:
    """Tables, user pool and the rest. Importing boto3 takes a while: while AWS starts, this does."""
    await _all(
        *([_start(aws, exits)] if aws is not None else []),
        asyncio.to_thread(provision.warm),
    )
    try:
        return await asyncio.to_thread(provision.provision, environ)
    except Exception as error:
        raise NotStarted(f"cannot set up AWS at {environ['AWS_ENDPOINT_URL']}: {str(error)[:300]}") from error


def _function(name: str, environ: Mapping[str, str], exits: AsyncExitStack) -> Function:
    timeout_s = {"authorizer": 10.0, "metering": 60.0}.get(name, 30.0)  # as in the template
    function = Function(
        f"tollgate-{name}", f"functions.{name}.handler.handler", region=environ["AWS_REGION"], timeout_s=timeout_s
    )
    exits.push_async_callback(function.aclose)
    return function


async def _schedule(function: Function, every_s: float) -> None:
    """What EventBridge's schedule does. A run that fails is said, and the next one tries again."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await function.invoke({"source": "aws.events", "detail-type": "Scheduled Event"})
        except Exception as error:  # noqa: BLE001 - whatever a function raises is its failure, not ours
            say(f"{function.name} failed and is tried again: {error!r}")


async def _publish(
    policy: Policy, http: HttpClient, environ: Mapping[str, str], publisher: Function, exits: AsyncExitStack
) -> None:
    """Write the policy and the demo tenants to the tables and follow the tables' streams, as on AWS. Returns when the
    policy has come out at the other end."""
    from tollgate.adapters.aws import AwsClient, CredentialSource
    from tollgate.adapters.aws_environment import endpoint
    from tollgate.adapters.policy_tables import PolicyTables
    from tollgate.local.streams import TableStream, not_snapshot
    from tollgate.ports import PolicyUnavailable

    dynamodb = AwsClient.for_service("dynamodb", http, environ)
    region, source = environ["AWS_REGION"], CredentialSource(environ)
    # every AWS that is not AWS has the streams' API where the tables' is
    url = endpoint("dynamodb", region, environ)
    streams = AwsClient(http, "dynamodb", region, url, "DynamoDBStreams_20120810", "1.0", source)
    policy_table, tenants_table = environ["TOLLGATE_POLICY_TABLE"], environ["TOLLGATE_TENANTS_TABLE"]
    followers = [
        TableStream(dynamodb, streams, policy_table, publisher.invoke, wanted=not_snapshot),
        TableStream(dynamodb, streams, tenants_table, publisher.invoke),
        TableStream(dynamodb, streams, environ["TOLLGATE_KEYS_TABLE"], publisher.invoke),
    ]
    for follower in followers:
        exits.callback(asyncio.create_task(follower.run()).cancel)
    tables = PolicyTables(dynamodb, policy_table, tenants_table, environ)
    await tables.apply(policy, "tollgate dev")
    try:
        async with asyncio.timeout(PUBLISHED_WITHIN_S):
            while True:
                try:
                    await tables.policy()
                except PolicyUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    return
    except TimeoutError:
        raise NotStarted(f"the policy was not published within {PUBLISHED_WITHIN_S:g} s") from None


def _log_pipe(environ: Mapping[str, str], metering: Function, options: Options, exits: AsyncExitStack) -> LogPipe:
    """The proxy's log group, whose subscriptions are metering's."""
    from tollgate.local.log_pipe import LogPipe
    from tollgate.local.provision import PROXY_LOG_GROUP, dead_letter

    async def dead(event: Mapping[str, Any], error: Exception) -> None:
        letter = json.dumps({"error": str(error), "event": event})
        await asyncio.to_thread(dead_letter, environ["TOLLGATE_DEAD_LETTER_QUEUE_URL"], letter)

    pipe = LogPipe(
        metering.invoke,
        log_group=PROXY_LOG_GROUP,
        other=lambda line: show_line(line, verbose=options.verbose),
        dead=dead,
    )
    pipe.start()
    # pushed before the process: what it writes while it ends is metered too
    exits.push_async_callback(pipe.close)
    return pipe


async def _proxy(
    port: int, environ: Mapping[str, str], pipe: LogPipe, http: HttpClient, exits: AsyncExitStack
) -> Child:
    """The proxy's process, started as run.sh does it, with its standard output in its log group."""
    command = [sys.executable, "-m", "functions.proxy", str(port), str(PROXY_DRAIN_S)]
    # by this it knows that it is behind API Gateway, and believes the request context
    on_lambda = {"AWS_LAMBDA_FUNCTION_NAME": "tollgate-proxy", "POWERTOOLS_SERVICE_NAME": "proxy"}
    child = Child("proxy", command, {**environ, **on_lambda}, ready=lambda: _healthy(http, port), on_output=pipe.feed)
    await _start(child, exits, PROXY_STOP_S)
    return child


async def _healthy(http: HttpClient, port: int) -> None:
    """Returns when the proxy answers less than 500, which is what the Lambda Web Adapter takes for ready."""
    timeouts = Timeouts(connect=1, first_byte=5, idle=5, total=5)
    while True:
        try:
            response = await http.request("GET", f"http://127.0.0.1:{port}/healthz", timeouts=timeouts)
            await response.read(1_000_000)
            if response.status < 500:
                return
        except UpstreamError:
            pass
        await asyncio.sleep(0.02)


async def _gateway(
    listener: socket.socket, integration: Integration, authorizer: Function, http: HttpClient, exits: AsyncExitStack
) -> None:
    """Serve the stand-in for API Gateway on the port that the user asked for."""
    from tollgate.adapters.http_server import HttpServer
    from tollgate.local.api_gateway import ApiGateway

    application = ApiGateway(authorizer.invoke, integration, http)
    server = HttpServer(application)
    await server.start(listener)
    exits.push_async_callback(server.stop, DRAIN_S)


async def _demo_token(policy: Policy, http: HttpClient, url: str) -> tuple[str, str]:
    """A token of the first tenant and a model that it may use, after a first request has been served with it; ``""``
    if there is no tenant."""
    if not policy.tenants:
        return "", ""
    from tollgate.local.tokens import issue

    tenant = next(iter(policy.tenants))
    plan = policy.tenants[tenant].plan
    token = await asyncio.to_thread(issue, tenant, USER, TOKEN_S)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    response = await http.request("GET", f"{url}/v1/models", headers, timeouts=Timeouts(total=START_S))
    body = await response.read(1_000_000)
    if response.status != 200:
        raise NotStarted(f"the gateway does not serve: {response.status} {body[:300].decode(errors='replace')}")
    return token, next(iter(policy.plans[plan].models), "")


async def _all(*awaitables: Awaitable[Any]) -> list[Any]:
    """All results; when one fails the others are ended before its error is raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
