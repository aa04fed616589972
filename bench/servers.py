"""Which ASGI server serves the gateway best on one core: `python bench/servers.py` (docs/adr/0012-own-http-server.md).

Granian is installed into a temporary environment of its own, which sees this one's packages.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from functools import partial
from pathlib import Path
from statistics import median

from rig import SLOW_MS, UVICORN, CannotRun, Rig
from run import Target, rounds_of

GRANIAN = "granian==2.7.9"
APPLICATION = "tollgate.bootstrap:serve_application"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/servers.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--granian", default=GRANIAN, help="what to install")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="tollgate-granian-") as folder:
            compare(granian_in(Path(folder), options.granian), options.rounds, options.seconds)
    except (CannotRun, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def granian_in(folder: Path, requirement: str) -> list[str]:
    """The command that serves the gateway with granian."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sysconfig.get_path("purelib"))
    (folder / "lib" / version / "site-packages" / "tollgate.pth").write_text(f"{own}\n")
    return [
        str(python), "-m", "granian", "--interface", "asgi", "--factory", "--loop", "uvloop", "--http", "1", "--no-ws",
        "--workers", "1", "--runtime-threads", "1", "--log-level", "warning", "--port", "{port}", APPLICATION,
    ]  # fmt: skip


def compare(granian: list[str], rounds: int, seconds: float) -> None:
    with Rig() as rig:
        token = rig.issuer.token("bench")
        targets: list[Target] = []
        uvicorn = rig.python("-m", "uvicorn", "--factory", APPLICATION, "--port", "{port}", *UVICORN)
        for name, command in (("ours", None), ("uvicorn", uvicorn), ("granian", granian)):
            process, port = rig.gateway(command)
            rig.load(port, token, connections=64, seconds=1)
            targets.append(Target(name, port, process))
        print(f"{'':<24}{'ours':>28}{'uvicorn':>28}{'granian':>28}   our CPU as a share of uvicorn's")
        for model, stream, connections in (
            ("bench", False, 64), ("bench", True, 64), ("bench", False, 1), ("bench-slow", False, 1),
        ):  # fmt: skip
            load = partial(rig.load, token=token, connections=connections, seconds=seconds, stream=stream, model=model)
            found = rounds_of(targets, rounds, load)
            what = "stream" if stream else f"whole, {SLOW_MS} ms" if model != "bench" else "whole"
            print(f"{what + ', ' + str(connections):<24}", end="")
            for taken in found.values():
                rps = median(sample.load.rps for sample in taken)
                cpu = median(sample.cpu_us for sample in taken)
                p99 = median(sample.load.p99_us for sample in taken) / 1000
                bad = sum(sample.load.refused + sample.load.errors for sample in taken)
                print(f"{rps:>8,.0f}/s {cpu:>5.0f} us {p99:>6.1f} ms {bad or '':>3}", end="")
            ratio = median(own.cpu_us / its.cpu_us for own, its in zip(found["ours"], found["uvicorn"], strict=True))
            print(f"   {ratio:.2f}")
        for target in targets:
            assert target.process is not None
            print(f"{target.name}: {target.process.rss_mb():.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
