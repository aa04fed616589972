"""The walls of the house: what may import what."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shared" / "tollgate"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "functions").rglob("*.py")])
PURE = sorted(path for part in ("domain", "wire") for path in (PACKAGE / part).rglob("*.py"))

IO = {
    "asyncio",
    "concurrent",
    "http",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
}
"""Of the standard library: what reaches outside, or gives a different answer each time."""
PURE_PARTS = {"urllib.parse"}
CLOCK_CALLS = {"now", "utcnow", "today"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_domain_and_wire_are_pure(path: Path) -> None:
    for module in imports(path):
        top = module.partition(".")[0]
        if top == "tollgate":
            assert module.split(".")[1] in ("domain", "wire"), f"{module} is not for pure modules"
        else:
            assert top in sys.stdlib_module_names, f"{module} is not in the standard library"
            assert top not in IO or module in PURE_PARTS, f"{module} does IO"


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_domain_and_wire_read_no_clock_and_no_file(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                assert called.attr not in CLOCK_CALLS, f"line {node.lineno}: {called.attr}()"
            elif isinstance(called, ast.Name):
                assert called.id not in ("open", "print", "input"), f"line {node.lineno}: {called.id}()"


def test_the_domain_does_not_know_the_wire() -> None:
    for path in PURE:
        if "domain" in path.parts:
            assert not [module for module in imports(path) if module.startswith("tollgate.wire")], name_of(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_source_root_is_not_a_package(path: Path) -> None:
    assert not [module for module in imports(path) if module.partition(".")[0] == "shared"]


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent == PACKAGE / "services"], ids=name_of)
def test_services_load_no_client_library(path: Path) -> None:
    heavy = {"boto3", "botocore", "aiohttp", "redis", "starlette", "aws_lambda_powertools", "moto"}
    assert not [module for module in imports(path) if module.partition(".")[0] in heavy]
