"""What commands print and ask: JSON for programs, tables that fit the terminal for people.

Standard output has the answer and nothing else; questions and progress go to standard error.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from tollgate.cli.failures import USAGE, Fail

F = TypeVar("F", bound=Callable[..., Any])

MIN_COLUMN = 6
"""Characters that a cut text keeps, the ellipsis included."""
MICRO = 1_000_000
QUIET_S = 1
"""Nobody wonders that soon whether a command still works."""

_NUMBER = re.compile(r"-?\$?[0-9][0-9,]*(\.[0-9]+)?%?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.]+Z)?")
_NOTHING = ("", "-")


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def yes_option(command: F) -> F:
    """For `confirm`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def echo_json(value: Any) -> None:
    from tollgate.domain.policy_document import jsonable

    click.echo(json.dumps(jsonable(value), ensure_ascii=False))


def money(microusd: int) -> str:
    """An amount of micro-dollars as dollars: with cents, and with more places only where it has them."""
    dollars, rest = divmod(abs(microusd), MICRO)
    cents, more = divmod(rest, 10_000)
    return f"{'-' if microusd < 0 else ''}${dollars:,}.{cents:02d}" + (f"{more:04d}" if more else "")


def flow(value: Any) -> str:
    """Plain data in one line, as one would write it in policy.yaml."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {flow(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return shown("null" if value is None else value)


def attended() -> bool:
    """Whether somebody sits there who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def card(fields: Mapping[str, Any]) -> str:
    """One thing, a field a line."""
    width = max(map(len, fields), default=0)
    return "\n".join(f"{name.ljust(width)}  {shown(value)}" for name, value in fields.items())


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | int | None]],
    footer: Sequence[str | int | None] = (),
    whole: Collection[str] = (),
) -> str:
    """Rows under their columns: numbers to the right; where a terminal is too narrow, texts are cut, never numbers or
    dates; and what stands in the columns `whole` only where nothing else is left to cut.

    Whatever is not a terminal gets everything.
    """
    cells = [[shown(cell) for cell in row] for row in [columns, *rows, *([footer] if footer else [])]]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(columns))]
    numeric = [_all([row[i] for row in cells[1:]], _NUMBER) for i in range(len(columns))]
    texts = [i for i in range(len(columns)) if not numeric[i] and not _all([row[i] for row in cells[1:]], _DATE)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(columns) - 1)
        for some in ([i for i in texts if columns[i] not in whole], [i for i in texts if columns[i] in whole]):
            while sum(widths) > room and (widest := max(some, key=lambda i: widths[i], default=-1)) >= 0:
                if widths[widest] <= MIN_COLUMN:
                    break
                widths[widest] -= 1
    lines = []
    for row in cells:
        parts = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            text = _cut(cell, width)
            padding = " " * (width - _width(text))
            parts.append(padding + text if right else text + padding)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def confirm(question: str, yes: bool, *, unattended: bool = False) -> None:
    """Ask before something is destroyed, unless `yes` (`yes_option`). Ends the command where the answer is no.

    Where nobody can be asked (a script), `unattended` says whether the command goes on: for what is asked only
    because people slip, and can be undone.
    """
    if yes:
        return
    if not attended():
        if unattended:
            return
        raise Fail(f"{question} Nobody can be asked here: add --yes", USAGE)
    if not click.confirm(question, default=False, err=True):
        raise Fail("nothing was changed")


@contextmanager
def progress(label: str, length: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how far long work is, on a terminal only: call what this gives with how many more are done.

    Without a `length`, it counts, from when the work has taken `QUIET_S`.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    if length is not None:
        with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
            yield bar.update
        return
    done, began = 0, time.monotonic()

    def count(more: int) -> None:
        nonlocal done
        done += more
        if time.monotonic() - began < QUIET_S:
            return
        click.echo(f"\r{label}  {done:,}", nl=False, err=True)

    try:
        yield count
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)  # what was counted is in the answer


def shown(value: object) -> str:
    """The value as text, without what would steer a terminal: names come from callers' tokens and from the tables."""
    text = "-" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return text + "…"


def _all(cells: Sequence[str], kind: re.Pattern[str]) -> bool:
    told = [cell for cell in cells if cell not in _NOTHING]
    return bool(told) and all(kind.fullmatch(cell) for cell in told)
