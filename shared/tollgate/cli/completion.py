"""``tollgate completion``: what makes the Tab key work."""

from __future__ import annotations

import click

from tollgate.cli.output import echo_json, json_option

VARIABLE = "_TOLLGATE_COMPLETE"
"""By which a shell asks for completions: click's own convention."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print the script that completes commands, options, and the names of tenants, plans and models.

    \b
      echo 'eval "$(tollgate completion bash)"' >> ~/.bashrc
      echo 'eval "$(tollgate completion zsh)"' >> ~/.zshrc
      tollgate completion fish > ~/.config/fish/completions/tollgate.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "tollgate", VARIABLE).source()
    if as_json:
        echo_json({"shell": shell, "script": script})
    else:
        click.echo(script)
