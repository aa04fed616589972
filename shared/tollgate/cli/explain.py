"""``tollgate explain``: why a request was refused, or would be."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import click

from tollgate.cli.connect import Stack, boto, environment, with_stack
from tollgate.cli.failures import FAILED, NOT_FOUND, Fail
from tollgate.cli.output import card, echo_json, json_option, money, table

REQUEST = re.compile(r"req_[0-9a-f]{32}")
REFUSALS_S = 7 * 86_400
"""How far back a refused request's id is looked for."""
FUNCTION = "TOLLGATE_INSPECT_FUNCTION"


@click.command()
@click.argument("request_id", required=False)
@click.option("--tenant", help="Whose call.")
@click.option("--user", help="Which user of the tenant.")
@click.option("--team", default="", help="Of which team.")
@click.option("--key", default="", metavar="ID", help="With which API key: its public id.")
@click.option("--plan", default="", help="The token's plan, for a tenant without a record.")
@click.option("--model", default="", help="To one model (default: all of the plan's).")
@click.option("--ip", default="", metavar="ADDRESS", help="From which address, for limits per address.")
@click.option(
    "--tokens", type=click.IntRange(1, 10**9), default=1, show_default=True, help="Prompt and answer together."
)
@json_option
def explain(request_id: str | None, tenant: str | None, user: str | None, as_json: bool, **more: Any) -> None:
    """Say why a request was refused, or would be now.

    For a caller: every limit with what is left, how long it refuses, and where it comes from (plan, override, boost,
    model, upstream, global); data rules, the tenant's state, and whether the store has the newest policy and record.
    Asked for one token by default; --tokens asks for a call that holds so many. Nothing is taken from any limit.

    \b
    For a REQUEST_ID (a caller's x-request-id), what is on record:
      answered   usage, price and cost, for 100 days
      under way  what is held, until it is closed
      refused    only if it was the first refusal of its caller, rule and minute, in the last 7 days: all others
                 are counted without their ids

    \b
      tollgate explain --tenant acme --user ann
      tollgate explain --tenant acme --user ann --model small --tokens 50000
      tollgate explain req_0123456789abcdef0123456789abcdef
    """
    if request_id is not None:
        if tenant or user or any(value for name, value in more.items() if name != "tokens"):
            raise click.UsageError("give a REQUEST_ID, or a caller with --tenant and --user, not both")
        _show_request(_request(request_id), as_json)
        return
    if not tenant or not user:
        raise click.UsageError("give a REQUEST_ID, or a caller with --tenant and --user")
    found = _ask({"tenant": tenant, "user": user, **more})
    if as_json:
        echo_json(found)
    else:
        _show_caller(found)


# -- a caller ----------------------------------------------------------------------------------------------------------


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    """What the stack's inspect function says. Raises `Fail`."""
    environ = environment((FUNCTION,))
    if not environ.get(FUNCTION):
        raise Fail(f"this stack has no {FUNCTION}: deploy the newest template", NOT_FOUND)
    answer = boto("lambda", environ).invoke(FunctionName=environ[FUNCTION], Payload=json.dumps(question).encode())
    found = json.loads(answer["Payload"].read())
    if answer.get("FunctionError"):
        raise Fail(f"{environ[FUNCTION]} failed: {found.get('errorMessage', answer['FunctionError'])}", FAILED)
    if "error" in found:
        raise Fail(str(found["error"]), FAILED)
    return dict(found)


def _show_caller(found: dict[str, Any]) -> None:
    verdict, versions = found["verdict"], found["versions"]
    head = {
        "verdict": "admitted" if verdict["admitted"] else f"refused: {verdict['status']} {verdict['rule']}",
        "told": verdict["message"],
        "tenant": f"{found['tenant']} ({found['state'] or 'no record'})",
        "plan": found["plan"] or "-",
        "data rules": "; ".join(json.dumps(rules) for rules in found["data_rules"]) or "none",
        "decided by": found["store"],
        "policy": versions["policy"],
        "record": versions["record"] if found["own_record"] else "none: the token's plan counts",
        "in sync": "yes"
        if versions["in_sync"]
        else f"no: the store knows policy {versions['policy_in_store']}, record {versions['record_in_store']}",
    }
    click.echo(card(head))
    closed = [entry for entry in found["models"] if not entry["allowed"]]
    for entry in closed:
        click.echo(f"not {entry['model'] or 'any model'}: {entry['why']}")
    rows = [
        [
            limit["limit"],
            _amount(limit, limit["amount"]),
            _amount(limit, limit["remaining"]),
            "never" if limit.get("window") == "life" else _seconds(limit["reset_s"]),
            _wait(limit),
            limit["source"] + (f" (debt {limit['debt']})" if limit.get("debt") else ""),
        ]
        for limit in sorted(found["limits"], key=lambda limit: not limit["refuses"])
    ]
    if rows:
        columns = ("limit", "amount", "left", "resets in", "refuses for", "source")
        click.echo("\n" + table(columns, rows, whole=("limit", "refuses for")))


def _amount(limit: dict[str, Any], amount: int) -> str:
    return money(amount) if limit["unit"] == "microusd" else f"{amount:,}"


def _wait(limit: dict[str, Any]) -> str:
    if not limit["refuses"]:
        return ""
    if limit.get("window") == "life":
        return "(top it up)"
    if limit["wait_s"] is None and limit["unit"] != "slots":
        return "for ever"
    # what calls in flight hold of a budget, and do not use, is free sooner
    return _seconds(limit["wait_s"] or 0) + (" at most" if "window" in limit else "")


def _seconds(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} days"


# -- a request ---------------------------------------------------------------------------------------------------------


def _request(id: str) -> dict[str, Any]:
    """What is on record of a request. Raises `Fail` where nothing is."""
    if not REQUEST.fullmatch(id):
        raise click.UsageError(f"{id!r} is no request id: expected req_ and 32 digits, as in x-request-id")

    async def run(stack: Stack) -> dict[str, Any] | None:
        ledger = stack.ledger()
        if (entered := await ledger.entry(id)) is not None:
            entry, provisional = entered
            return {"is": "billed at its estimate" if provisional else "entered", **entry.as_dict()}
        if (open_ := await ledger.open_call(id)) is not None:
            return {"is": "open", **open_.as_dict()}
        now_us = int(time.time() * 1_000_000)
        async for refused in stack.audit().refusals(now_us - REFUSALS_S * 1_000_000, now_us):
            if refused.sample == id:
                return {"is": "refused", **refused.as_dict()}
        return None

    found = with_stack(run, ("TOLLGATE_LEDGER_TABLE", "TOLLGATE_AUDIT_TABLE"))
    if found is None:
        raise Fail(
            f"nothing is on record of {id}: it was refused (ask for its caller: --tenant, --user), is entered in some "
            "seconds, or is older than 100 days",
            NOT_FOUND,
        )
    return found


def _show_request(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(found)
        return
    left_out = ("event", "v", "minor", "kind", "id", "settle", "rates_us", "budget_models")
    shown = {name: value for name, value in found.items() if name not in left_out and value not in ("", None)}
    if "cost_microusd" in shown:
        shown["cost"] = money(shown.pop("cost_microusd"))
    for name in [name for name in shown if name.endswith("_us")]:
        moment = time.gmtime(shown.pop(name) // 1_000_000)
        shown[name.removesuffix("_us")] = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    click.echo(card(shown))
