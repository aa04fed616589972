"""docs/operations.md is used in a hurry: links lead somewhere, commands exist, no alarm is without its section."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from tollgate.cli import tollgate

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/operations.md").read_text()
HEADINGS = re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)
COMMANDS = sorted({line.strip() for line in re.findall(r"^ {4}(tollgate .+)$", RUNBOOK, re.MULTILINE)})


def test_every_alarm_of_the_template_has_a_section() -> None:
    alarms = re.findall(r"^  (\w+):\n    Type: AWS::CloudWatch::Alarm$", (ROOT / "template.yaml").read_text(), re.M)
    assert alarms
    assert not set(alarms) - set(HEADINGS)


def test_links_lead_to_sections() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    assert not set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) - anchors


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_written_as_they_have_to_be(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = tollgate
    context = click.Context(tollgate, info_name="tollgate", **tollgate.context_settings)  # as it is really called
    while isinstance(command, click.Group):
        if command is not tollgate and (not words or words[0].startswith("-")):  # it does something by itself
            command.make_context(command.name, words, parent=context)
            return
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no {name!r} in {line!r}"
        command = found
        if not isinstance(command, click.Group):
            command.make_context(name, words, parent=context)  # raises for what it does not understand
