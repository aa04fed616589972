"""docs/cli.md, made of the commands' own help: ``python -m tollgate.cli.reference > docs/cli.md``."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import click

from tollgate.cli import tollgate
from tollgate.cli.connect import ConnectionOption

WIDTH = 100
HEAD = """\
# The `tollgate` command

Made of the commands' own `--help` (`python -m tollgate.cli.reference`); change it there. All commands that talk to a
stack also take `--stack NAME|URL`, `--profile NAME` and `--region NAME`, which are left out below.
"""


def reference() -> str:
    """The whole text."""
    return "\n".join([HEAD, *_sections(tollgate, ("tollgate",))])


def _sections(command: click.Command, words: tuple[str, ...]) -> Iterator[str]:
    title = " ".join(words)
    yield f"{'#' * min(len(words) + 1, 4)} {title}\n\n```text\n{_help(command, title)}\n```\n"
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _sections(inner, (*words, name))


def _help(command: click.Command, title: str) -> str:
    shown = copy.copy(command)
    if title != "tollgate":
        shown.params = [param for param in command.params if not isinstance(param, ConnectionOption)]
    ctx = click.Context(
        shown, info_name=title, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    return "\n".join(line.rstrip() for line in shown.get_help(ctx).splitlines())


if __name__ == "__main__":
    click.echo(reference(), nl=False)
