"""The processes of a benchmark, each on its core; and what can be read of them from outside."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from issuer import Issuer

BENCH = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("BENCH_TREE") or BENCH.parent)
"""The checkout that is measured: this one, or another to compare with."""
PYTHON = os.environ.get("BENCH_PYTHON") or sys.executable
"""The interpreter that is measured: this one, or another of the same version, built in another way."""
CHUNKS = 20
SLOW_MS = 20
_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
UVICORN = (
    "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--log-level", "warning",
    "--no-server-header", "--no-date-header", "--no-proxy-headers",
)  # fmt: skip
"""What uvicorn is started with: as fast as it can be."""


class CannotRun(Exception):
    """Something that a benchmark needs is not here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the loader measured; times in microseconds, as the client saw them."""

    requests: int
    rps: float
    p50_us: float
    p99_us: float
    first_byte_p50_us: float
    refused: int
    """Answers other than 200."""
    errors: int
    """Connections that broke."""


class Process:
    """A child on the cores given, stopped with its rig."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], cores: set[int], log: Path) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as out, open(f"{log}.err", "ab") as err:
            self._child = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._child.pid

    def cpu_us(self) -> int:
        """CPU used so far, user and system, in microseconds (the kernel counts in steps of 10 ms)."""
        total = 0
        for pid in self._family():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) * _TICK_US
        return total

    def rss_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        total = 0
        for pid in self._family():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total / 1e6

    def _family(self) -> list[int]:
        """The process and its children: some servers do their work in one."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def wait_for_port(self, port: int, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise CannotRun(f"{self.name} does not start:\n{Path(f'{self.log}.err').read_text()[-4000:]}")

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def stop(self) -> None:
        if self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Rig:
    """Loader, mock upstreams, Redis and the issuer on one core; what is measured on the other. A context manager."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise CannotRun("the benchmarks need Linux: the load tools use epoll, the figures come from /proc")
        cores = sorted(os.sched_getaffinity(0))
        self.cores = len(cores)
        self._tools_core, self.gateway_core = {cores[0]}, {cores[-1]}
        self._folder = Path(tempfile.mkdtemp(prefix="tollgate-bench-"))
        self._processes: list[Process] = []
        self._logs = 0
        os.sched_setaffinity(0, self._tools_core)
        self._load, upstream = self._compile("load"), self._compile("upstream")
        self.issuer = Issuer()
        self.upstream_port, self.slow_port, self.redis_port = _free_port(), _free_port(), _free_port()
        self._tool("upstream", [upstream, str(self.upstream_port), "0", str(CHUNKS)], self.upstream_port)
        self._tool("slow upstream", [upstream, str(self.slow_port), str(SLOW_MS), str(CHUNKS)], self.slow_port)
        redis = ["--bind", "127.0.0.1", "--port", str(self.redis_port), "--save", "", "--appendonly", "no"]
        self._tool("redis", [_redis_server(), *redis, "--dir", str(self._folder)], self.redis_port)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.stop()
        self.issuer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what is measured

    def gateway(self, command: Sequence[str] | None = None, **changes: str) -> tuple[Process, int]:
        """The gateway as `tollgate serve` runs it, with its limits in Redis; `changes` are environment variables.

        `command`: another way to serve the same application; ``{port}`` stands for its port.
        """
        env = {
            **self._environment(),
            **self.issuer.environment(),
            "TOLLGATE_POLICY": str(BENCH / "policy.yaml"),
            "TOLLGATE_UPSTREAMS__MOCK__BASE_URL": f"http://127.0.0.1:{self.upstream_port}/v1",
            "TOLLGATE_UPSTREAMS__MOCK_SLOW__BASE_URL": f"http://127.0.0.1:{self.slow_port}/v1",
            "TOLLGATE_STORE_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "TOLLGATE_LIMITS_TABLE": "limits",
            "TOLLGATE_LEDGER_TABLE": "ledger",
            **changes,
        }
        return self._serve("gateway", command or self.python("-m", "tollgate.cli", "serve", "--port", "{port}"), env)

    def bare_proxy(self, upstream_port: int) -> tuple[Process, int]:
        env = {**self._environment(), "BENCH_UPSTREAM": f"http://127.0.0.1:{upstream_port}"}
        command = self.python("-m", "uvicorn", "--app-dir", str(BENCH), "bare_proxy:app", "--port", "{port}")
        return self._serve("bare proxy", [*command, *UVICORN], env)

    def python(self, *words: str) -> list[str]:
        return [PYTHON, *words]

    # -- what measures

    def load(
        self, port: int, token: str, *, connections: int, seconds: float, stream: bool = False, model: str = "bench"
    ) -> Load:
        """Run the loader: `connections` callers, each of which asks again as soon as it has its answer."""
        command = [
            self._load, str(port), "/v1/chat/completions", str(connections), str(seconds), "01"[stream], token, model,
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
        found = json.loads(out.partition("RESULT ")[2].splitlines()[0])
        return Load(
            found["req"], found["rps"], found["p50_us"], found["p99_us"], found["ttfb50_us"], found["non200"],
            found["sockerr"],
        )  # fmt: skip

    def ask(self, port: int, token: str, model: str = "bench") -> tuple[int, dict[str, str], bytes]:
        """One call; status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8})
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def redis(self, *command: str) -> str:
        """One Redis command; its reply as text."""
        with (
            socket.create_connection(("127.0.0.1", self.redis_port), 5) as connection,
            connection.makefile("rb") as file,
        ):
            connection.sendall(" ".join(command).encode() + b"\r\n")
            first = file.readline()
            return file.read(int(first[1:])).decode() if first.startswith(b"$") else first[1:].strip().decode()

    def redis_calls(self) -> dict[str, int]:
        """How often each command was called since the last CONFIG RESETSTAT (those of scripts included)."""
        calls: dict[str, int] = {}
        for line in self.redis("INFO", "commandstats").splitlines():
            if line.startswith("cmdstat_"):
                name, _, figures = line.removeprefix("cmdstat_").partition(":")
                calls[name] = int(figures.split(",")[0].removeprefix("calls="))
        return calls

    # -- internals

    def _compile(self, name: str) -> str:
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise CannotRun("no C compiler: the load tools are compiled by cc (Debian: apt install gcc libc6-dev)")
        target = str(self._folder / name)
        done = subprocess.run(
            [compiler, "-O2", "-o", target, str(BENCH / "tools" / f"{name}.c")], capture_output=True, text=True
        )
        if done.returncode:
            raise CannotRun(f"bench/tools/{name}.c does not compile:\n{done.stderr[:2000]}")
        return target

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TOLLGATE_", "AWS_", "REDIS_"))
        }
        path = [str(ROOT / "shared")]
        if sys.executable != PYTHON:  # it has no packages of its own
            path.append(sysconfig.get_paths()["purelib"])
        return {**kept, "PYTHONPATH": os.pathsep.join(path)}

    def _tool(self, name: str, command: list[str], port: int) -> None:
        self._start(name, command, self._environment(), self._tools_core).wait_for_port(port)

    def _serve(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> tuple[Process, int]:
        port = _free_port()
        process = self._start(name, [word.replace("{port}", str(port)) for word in command], env, self.gateway_core)
        process.wait_for_port(port)
        return process, port

    def _start(self, name: str, command: Sequence[str], env: Mapping[str, str], cores: set[int]) -> Process:
        self._logs += 1
        log = self._folder / f"{self._logs}-{name.replace(' ', '-')}.log"
        process = Process(name, command, env, cores, log)
        self._processes.append(process)
        return process


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _redis_server() -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)):
            return found
    raise CannotRun("no redis-server: `make setup` puts one into .venv/bin")
