"""Cold imports: what a new Lambda environment waits for before its first request, with compiled bytecode as shipped."""

from __future__ import annotations

import os
import resource
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from statistics import median

from rig import PYTHON, ROOT

PROXY = (
    "functions.proxy.__main__", "uvloop",
    "tollgate.services.gateway", "tollgate.services.administration", "tollgate.services.directory",
    "tollgate.adapters.failover", "tollgate.adapters.redis_store", "tollgate.adapters.redis_limits",
    "tollgate.adapters.dynamodb_limits", "tollgate.adapters.dynamodb_ledger", "tollgate.adapters.policy_tables",
    "tollgate.adapters.provider_keys",
)  # fmt: skip
"""With the server, the gateway that it makes, and the adapters that its configuration on AWS would choose at start."""
MODULES = {
    "authorizer": ("functions.authorizer.handler",),
    "proxy": PROXY,
    "metering": ("functions.metering.handler",),
    "publisher": ("functions.publisher.handler",),
    "token trigger": ("functions.token_trigger.handler",),
}


@dataclass(frozen=True, slots=True)
class ImportTime:
    """Milliseconds of CPU above a bare interpreter's start: the median, and the range of all runs."""

    median_ms: float
    lowest_ms: float
    highest_ms: float


def cold_imports(runs: int, core: set[int]) -> dict[str, ImportTime]:
    """Each function's imports in processes of their own, `runs` times, interleaved with bare interpreters."""
    with tempfile.TemporaryDirectory(prefix="tollgate-bytecode-") as bytecode:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TOLLGATE_"))}
        environ |= {
            "PYTHONPATH": os.pathsep.join((str(ROOT / "shared"), str(ROOT), sysconfig.get_paths()["purelib"])),
            "PYTHONPYCACHEPREFIX": bytecode,
            "AWS_LAMBDA_FUNCTION_NAME": "bench",  # without it the proxy refuses to start
        }
        programs = {name: "import " + ", ".join(modules) for name, modules in MODULES.items()}
        for program in programs.values():
            _run(program, environ, core)  # compiles
        found: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(runs):
            bare = _run("pass", environ, core)
            for name, program in programs.items():
                found[name].append(_run(program, environ, core) - bare)
    return {name: ImportTime(median(times), min(times), max(times)) for name, times in found.items()}


def _run(program: str, environ: dict[str, str], core: set[int]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        # -S: this environment's start-up hooks import modules that a bundle would have to
        [PYTHON, "-S", "-c", program], env=environ, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stderr[-2000:]}")
    return spent * 1000
