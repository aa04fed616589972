"""``tollgate dev``, ``serve``, ``token`` and ``status``: a gateway, and a caller for it."""

from __future__ import annotations

import os
from typing import Any

import click

from tollgate.cli import complete
from tollgate.cli.connect import TABLES, environment, local_stack, with_http
from tollgate.cli.failures import FAILED, Fail
from tollgate.cli.output import echo_json, json_option
from tollgate.cli.prices import names_without_price

HEALTH_S = 5.0
PORT = click.IntRange(0, 65535)


@click.command()
@click.option("--port", type=PORT, default=8080, show_default=True, help="Where the gateway listens; 0: a free port.")
@click.option("--upstream", metavar="URL", help="An OpenAI-compatible server that answers instead of the demo model.")
@click.option("--policy", metavar="FILE", type=click.Path(dir_okay=False), help="The policy (default: policy.yaml).")
@click.option("--verbose", is_flag=True, help="Show what the functions log.")
@json_option
@click.pass_context
def dev(ctx: click.Context, port: int, upstream: str | None, policy: str | None, verbose: bool, as_json: bool) -> None:
    """Run everything on this machine, until Ctrl-C.

    A Redis, the AWS services, a demo model, three demo tenants, and the gateway before them, on loopback. Prints
    `ready URL`, then a token and a curl line to paste; with --json, one line with the URLs and process ids.

    \b
      tollgate dev
      tollgate dev --port 9000 --policy staging.yaml
      tollgate dev --upstream http://127.0.0.1:11434/v1   an Ollama here
    """
    from tollgate.local.stack import run_dev

    ctx.exit(run_dev(port, upstream, policy, as_json, verbose))


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 in a container."
)
@click.option("--port", type=PORT, default=8080, show_default=True)
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes; one per core.")
@json_option
@click.pass_context
def serve(ctx: click.Context, host: str, port: int, workers: int, as_json: bool) -> None:
    """Run the gateway alone, as in a container, until SIGTERM.

    It is set up by the environment: TOLLGATE_STORE_URL, TOLLGATE_POLICY (a file) or TOLLGATE_POLICY_TABLE and
    TOLLGATE_TENANTS_TABLE, TOLLGATE_ISSUER, TOLLGATE_CLIENT_IDS. Usage records go to standard output, a JSON line each
    (so do all others: --json changes nothing here).

    \b
      export TOLLGATE_POLICY=policy.yaml
      export TOLLGATE_ISSUER=https://login.example.com TOLLGATE_CLIENT_IDS=app
      tollgate serve --host 0.0.0.0 --workers 4
    """
    from tollgate.bootstrap import serve as run

    if not all(os.environ.get(name) for name in TABLES):
        from tollgate.adapters.policy_file import load

        load(os.environ.get("TOLLGATE_POLICY") or "policy.yaml", os.environ)  # its mistakes stop here, a line each
    code = run(host, port, workers)  # the server has said why
    ctx.exit(FAILED if 0 < code < 128 else code)


@click.command()
@click.option("--tenant", required=True, shell_complete=complete.tenants, help="Whose token.")
@click.option("--user", required=True, help="Which user of the tenant; made if there is none.")
@click.option("--ttl", type=click.IntRange(1), default=3600, show_default=True, metavar="SECONDS", help="How long.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["invoke", "models.read", "usage.read"]),
    multiple=True,
    default=["invoke"],
    show_default=True,
    help="What it is good for; may be repeated.",
)
@click.option("--admin", is_flag=True, help="Put the user into the administrators' group first (GET /admin/v1/...).")
@json_option
def token(tenant: str, user: str, ttl: int, scopes: tuple[str, ...], admin: bool, as_json: bool) -> None:
    """Print a token for a user, and nothing else. Local stacks only: elsewhere the user pool issues them.

    \b
      export OPENAI_API_KEY=$(tollgate token --tenant acme --user ann)
      tollgate token --tenant acme --user dashboard --scope usage.read
    """
    from tollgate.local.tokens import CannotIssue, issue

    environ = environment(("TOLLGATE_USER_POOL_ID",))
    try:
        issued = issue(tenant, user, ttl, environ, scopes=scopes, administrator=admin)
    except CannotIssue as error:
        raise Fail(str(error)) from None
    if as_json:
        echo_json({"token": issued, "tenant": tenant, "user": user, "expires_in": ttl})
    else:
        click.echo(issued)


@click.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say what runs, and whether it is well. Exit code 1 if the gateway does not answer.

    \b
      tollgate status
      tollgate status --stack tollgate-prod --json
    """
    environ = environment(())
    if not environ.get("TOLLGATE_URL") and not all(environ.get(name) for name in TABLES):
        environ = environment()  # says what is missing
    found = with_http(lambda http: _look(http, environ))
    if as_json:
        echo_json(found)
    else:
        for name, value in found.items():
            shown = ", ".join(value) or "none" if isinstance(value, list) else value
            click.echo(f"{name.ljust(9)} {'-' if shown is None else shown}")
    if found["health"] not in ("ok", None):
        ctx.exit(FAILED)


async def _look(http: Any, environ: dict[str, str]) -> dict[str, Any]:
    from tollgate.ports import PolicyUnavailable

    url = environ.get("TOLLGATE_URL", "").rstrip("/") or None
    health = await _health(http, url) if url else {}
    found: dict[str, Any] = {
        "url": url,
        "health": health.get("status") if url else None,
        "store": health.get("store") or _without_password(environ.get("TOLLGATE_STORE_URL", "")) or None,
        "policy": None,
        "tenants": None,
        "unpriced": None,
        "local": local_stack() is not None,
    }
    if all(environ.get(name) for name in TABLES):
        from tollgate.adapters.aws import AwsClient
        from tollgate.adapters.policy_tables import NotFound, PolicyTables

        policy_table, tenants_table = (environ[name] for name in TABLES)
        tables = PolicyTables(AwsClient.for_service("dynamodb", http, environ), policy_table, tenants_table)
        try:
            published = await tables.published()
            found["policy"] = published.revision
            found["unpriced"] = names_without_price(published)
            found["tenants"] = await tables.tenants.count()
        except NotFound:
            found["policy"] = 0
        except PolicyUnavailable:
            if not url:
                raise
    return found


async def _health(http: Any, url: str) -> dict[str, Any]:
    """What /healthz says, with `status` saying how it is."""
    import json

    from tollgate.adapters.http import Timeouts, UpstreamError

    timeouts = Timeouts(connect=HEALTH_S, first_byte=HEALTH_S, idle=HEALTH_S, total=HEALTH_S)
    try:
        response = await http.request("GET", f"{url}/healthz", timeouts=timeouts)
        body = await response.read(65_536)
        said = json.loads(body)
    except ValueError:
        return {"status": f"answers {response.status} without JSON"}
    except UpstreamError as error:
        return {"status": f"does not answer: {error}"}
    if response.status != 200 or not isinstance(said, dict):
        return {"status": f"answers {response.status}"}
    return said


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
