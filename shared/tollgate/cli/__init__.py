"""The `tollgate` command. Each command imports what it needs when it runs: `tollgate --help` costs click alone."""

from __future__ import annotations

import os
import sys

import click

from tollgate.cli import (
    alerts,
    audit,
    boosts,
    clients,
    completion,
    credit,
    explain,
    keys,
    ledger,
    plans,
    policy,
    prices,
    running,
    secrets,
    tenants,
    usage,
    users,
)
from tollgate.cli.connect import connection_options, leaves
from tollgate.cli.failures import EXIT_CODES, describe

HELP = f"""Run the gateway, and manage its policy, plans and tenants.

\b
  tollgate dev                                 everything on this machine, with a demo model
  tollgate policy apply                        make policy.yaml the running policy
  tollgate tenant create acme --plan pro       a tenant; it may call at once
  tollgate token --tenant acme --user ann      a token for one of its users
  tollgate boost acme scope=user requests=1000 per=minute --for 2h
  tollgate usage --by tenant,model             what was used, and what it costs

Commands find the newest local stack that runs. To manage a deployed one, name its CloudFormation stack, and the AWS
profile and region as for any AWS tool; or set TOLLGATE_STACK, AWS_PROFILE and AWS_REGION once.

\b
  tollgate tenant list --stack tollgate-prod --profile ops --region eu-central-1
  tollgate --stack http://127.0.0.1:9000 status

Every command has --json. An error is one line on standard error, and the exit code says what kind:

\b
{"".join(f"  {code}  {meaning}" + chr(10) for code, meaning in EXIT_CODES.items())}"""

OFFLINE = frozenset({("dev",), ("serve",), ("policy", "check"), ("completion",)})
"""Commands that talk to no stack."""


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Run a gateway": (running.dev, running.serve, running.status, running.token),
    "Say what may be used": (policy.policy, plans.plan, prices.price, secrets.secret),
    "Say who may use it": (tenants.tenant, boosts.boost, credit.credit, users.user, clients.client, keys.key),
    "See what happened": (usage.usage, explain.explain, audit.audit, alerts.alert, ledger.ledger),
    "This command itself": (completion.completion,),
}


class Sections(click.Group):
    """Lists its commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(str(command.name).ljust(width), command.get_short_help_str(160)) for command in commands]
                formatter.write_dl(rows)


@click.group(
    cls=Sections, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 118}
)
@click.version_option(package_name="tollgate", message="%(version)s")
def tollgate() -> None:
    pass


for section in SECTIONS.values():
    for command in section:
        tollgate.add_command(command)

# before or after the command, as it comes to mind
tollgate.params.extend(connection_options())
for words, leaf in leaves(tollgate):
    if words not in OFFLINE:
        leaf.params.extend(connection_options())


def main() -> None:
    """Run the command line and exit. No failure shows a stack trace, unless TOLLGATE_DEBUG is set."""
    try:
        code = tollgate.main(prog_name="tollgate", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # `tollgate usage | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("TOLLGATE_DEBUG"):
            raise
        failure = describe(error)
        click.echo(failure.message, err=True)
        sys.exit(failure.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
