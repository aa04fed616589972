"""Make one Lambda function's bundle: its hash-pinned libraries, the modules that its handler reaches, nothing else.

Called by the Makefile's `build-<LogicalId>` targets, which `sam build` calls:

    python requirements/bundle.py ProxyFunction OUT [--arch aarch64] [--python 3.13]

What a handler reaches is read from the import statements, also those inside functions (lazy ones). So no list has to
be kept: a bundle cannot lack a module that was added yesterday, nor hold the tests, the command line, the local
stack or a .env file. Bytecode is compiled here, because Lambda's file system is read-only and compiling at every cold
start costs more than all the rest of it; the .pyc files are of the unchecked-hash kind, which are loaded without a
look at the source's time (zip files change that) and come out the same in every build.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "shared", ROOT)
"""Source roots: what lies in them is importable by its path, here as in a bundle."""
ENTRIES = ("handler", "__main__")
"""Modules that Lambda starts from, in functions/<name>."""
NEVER = ("tollgate.cli", "tollgate.local")
"""Reached from shared modules where a person starts them, never on Lambda."""
WITH_LUA = "tollgate.adapters.redis_limits"
JUNK = re.compile(r"^(tests?|__pycache__|bin|.*\.(pyi|pyx|pxd|c|h)|py\.typed|RECORD|INSTALLER|REQUESTED|WHEEL)$")
"""Left out of libraries. METADATA stays: vulnerability scanners read it; so do licences."""


def main() -> None:
    parser = argparse.ArgumentParser(description="make one Lambda function's bundle")
    parser.add_argument("logical_id", help="as in template.yaml: ProxyFunction")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="aarch64")
    parser.add_argument("--python", default="3.13")
    options = parser.parse_args()
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", options.logical_id.removesuffix("Function")).lower()
    options.out.mkdir(parents=True, exist_ok=True)
    install(ROOT / "requirements" / f"{name}.lock", options.out, options.arch, options.python)
    copy_code(name, options.out)
    compiled = compile_all(options.out, options.python)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.logical_id}: {size / 1e6:.1f} MB{'' if compiled else ', without bytecode'}")


def install(lock: Path, out: Path, arch: str, python: str) -> None:
    """The locked libraries as wheels for Lambda's Amazon Linux 2023 (glibc 2.34), whatever this machine is."""
    if "--hash" not in lock.read_text():
        return  # the runtime brings all that this function needs
    platforms = [f"--platform=manylinux_2_{minor}_{arch}" for minor in range(34, 16, -1)]
    target = ["--implementation=cp", f"--python-version={python}", f"--platform=manylinux2014_{arch}", *platforms]
    # the lock is complete; resolving again would judge environment markers by this machine's Python
    locked = ["--only-binary=:all:", "--require-hashes", "--no-deps", f"--requirement={lock}"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *target, *locked, f"--target={out}"], check=True)
    for path in sorted(out.rglob("*")):
        if JUNK.match(path.name) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy_code(name: str, out: Path) -> None:
    """The modules that functions/<name> reaches, the Lua scripts if the Redis store is among them, and run.sh."""
    folder = ROOT / "functions" / name
    reached = modules_reached([f"functions.{name}.{entry}" for entry in ENTRIES if (folder / f"{entry}.py").exists()])
    if not reached:
        sys.exit(f"{folder} has neither {' nor '.join(f'{entry}.py' for entry in ENTRIES)}")
    for module, source in reached.items():
        target = out / Path(*module.split("."))
        target = target / "__init__.py" if source.name == "__init__.py" else target.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    if WITH_LUA in reached:
        shutil.copytree(ROOT / "lua", out / "lua", dirs_exist_ok=True, ignore=shutil.ignore_patterns("[!a-z]*"))
    if (folder / "run.sh").exists():
        shutil.copy(folder / "run.sh", out / "run.sh")  # with its mode: Lambda executes it


def modules_reached(entries: list[str]) -> dict[str, Path]:
    """Every module of this repository that `entries` import, directly or not, and the packages they lie in."""
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module in found or module.startswith(NEVER):
            continue
        source = source_of(module)
        if source is None:
            continue  # a name inside a module, the standard library, or a library
        found[module] = source
        waiting.extend(imports(source))
        waiting.append(module.rpartition(".")[0])
    return dict(sorted(found.items()))


def source_of(module: str) -> Path | None:
    if not module:
        return None
    for root in SOURCES:
        path = root.joinpath(*module.split("."))
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.exists():
                return candidate
    return None


def imports(source: Path) -> Iterator[str]:
    """What the import statements of a module name; those for type checkers only are not followed."""
    waiting: list[ast.AST] = [ast.parse(source.read_bytes(), source)]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                waiting.extend(node.orelse)
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(package)):
                yield package
                yield from (f"{package}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                sys.exit(f"{source}:{node.lineno}: a relative import; this repository imports by full names")
            case _:
                waiting.extend(ast.iter_child_nodes(node))


def compile_all(out: Path, python: str) -> bool:
    """Compile with the Python that Lambda runs; another one's bytecode would be ignored there."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    compiler = sys.executable if running == python else shutil.which(f"python{python}")
    if compiler is None or subprocess.run([compiler, "-c", ""], stderr=subprocess.DEVNULL).returncode:
        print(f"no python{python} here: no bytecode, so cold starts take 3 to 6 times as long", file=sys.stderr)
        return False
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(out), "-p", "/var/task"]
    subprocess.run([compiler, "-m", "compileall", *options, str(out)], check=True)
    return True


if __name__ == "__main__":
    main()
