"""The `tollgate` command. Each command imports what it needs when it runs: `tollgate --help` costs click alone."""

from __future__ import annotations

import os
import sys

import click

from tollgate.cli import plans, policy, running, tenants, usage
from tollgate.cli.failures import describe

HELP = """Run the gateway, and manage its policy, plans and tenants.

\b
  tollgate dev                                 everything on this machine, with a demo model
  tollgate policy apply                        make policy.yaml the running policy
  tollgate tenant create acme --plan pro       a tenant; it may call at once
  tollgate token --tenant acme --user ann      a token for one of its users
  tollgate usage --by tenant,model             what was used, and what it costs

Commands find the newest local stack that runs; TOLLGATE_URL=http://127.0.0.1:PORT picks one. To manage a deployed
stack, set TOLLGATE_POLICY_TABLE, TOLLGATE_TENANTS_TABLE and TOLLGATE_LEDGER_TABLE to its outputs, and AWS_PROFILE.

Every command has --json. An error is one line on standard error, and the exit code says what kind: 1 it failed,
2 wrong usage, 3 no such thing, 4 a conflict with what is there, 5 a policy with mistakes (a line each), 6 nothing
to talk to.

\b
Completion: eval "$(_TOLLGATE_COMPLETE=bash_source tollgate)"    (or zsh_source; fish: … fish_source tollgate | source)
"""


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 118})
@click.version_option(package_name="tollgate", message="%(version)s")
def tollgate() -> None:
    pass


for command in (
    running.dev,
    running.serve,
    running.token,
    tenants.tenant,
    plans.plan,
    policy.policy,
    usage.usage,
    running.status,
):
    tollgate.add_command(command)


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
