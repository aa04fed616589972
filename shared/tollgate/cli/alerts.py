"""``tollgate alert``: what operators were told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.output import echo_json, json_option, table

if TYPE_CHECKING:
    from tollgate.domain.alerts import Alert


@click.group()
def alert() -> None:
    """Alerts: thresholds of budgets that were reached, and hours that cost far more than usual.

    They go to EventBridge and from there to SNS, each once per budget, window and threshold (docs/alerts.md).

    \b
      tollgate alert list --days 7
      tollgate alert list --tenant acme --json
    """


@alert.command("list")
@click.option("--tenant", help="Of one tenant only.")
@click.option(
    "--days", type=click.IntRange(1, 400), default=2, show_default=True, help="Of so many UTC days, today included."
)
@json_option
def list_(tenant: str | None, days: int, as_json: bool) -> None:
    """List recent alerts, oldest first, those that wait for delivery too.

    \b
      tollgate alert list
      tollgate alert list --tenant acme --days 7 --json
    """
    today = datetime.now(UTC).date()
    labels = [(today - timedelta(days=back)).isoformat() for back in range(days)]

    async def run(stack: Stack) -> list[tuple[Alert, bool]]:
        from tollgate.adapters.alert_table import AlertTable

        return await AlertTable(stack.service("dynamodb"), stack.environ["TOLLGATE_LEDGER_TABLE"]).recent(labels)

    found = [(one, sent) for one, sent in with_stack(run, ("TOLLGATE_LEDGER_TABLE",)) if tenant in (None, one.tenant)]
    if as_json:
        echo_json({"alerts": [{**one.as_dict(), "delivered": sent} for one, sent in found]})
    elif found:
        rows = [[one.as_dict()["raised_at"], "sent" if sent else "waits", one.kind, one.text] for one, sent in found]
        click.echo(table(("raised", "delivery", "kind", "what"), rows))
    else:
        click.echo("no alerts")
