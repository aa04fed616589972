"""What commands print: JSON for programs, tables that fit the terminal for people."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

MIN_COLUMN = 6


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def echo_json(value: Any) -> None:
    from tollgate.domain.policy_document import jsonable

    click.echo(json.dumps(jsonable(value), ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str | int]], footer: Sequence[str | int] = ()) -> str:
    """Rows under their columns: numbers to the right, and long texts cut where a terminal is too narrow."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows, *([footer] if footer else [])]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - 2 * (len(columns) - 1)
        while sum(widths) > room:
            widest = max((i for i in range(len(widths)) if not numeric[i]), key=lambda i: widths[i], default=-1)
            if widest < 0 or widths[widest] <= MIN_COLUMN:
                break
            widths[widest] -= 1
    lines = []
    for row in cells:
        parts = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            shown = cell if len(cell) <= width else cell[: width - 1] + "…"
            parts.append(shown.rjust(width) if right else shown.ljust(width))
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _is_number(cell: str | int) -> bool:
    return isinstance(cell, int) or cell.lstrip("$").replace(",", "").replace(".", "").isdecimal()
