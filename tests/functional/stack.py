"""A running `tollgate dev` for tests: one process, as a user starts it, on a port of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tollgate.local.children import free_port

ROOT = Path(__file__).parents[2]
START_S = 60.0
STOP_S = 120.0
FAST_MODEL = {"TOLLGATE_DEMO_TOKENS_PER_SECOND": "1000", "TOLLGATE_DEMO_FIRST_TOKEN_MS": "1"}
"""A demo model that does not make tests wait."""


FAULTS = (
    "fault-500",
    "fault-429",
    "fault-401",
    "fault-garbage",
    "fault-close",
    "fault-close-mid-stream",
    "fault-stall",
    "fault-no-usage",
    "slow",
)
"""Models of the demo model that misbehave; `lab_policy` has one of each name."""


def lab_policy(folder: Path, *, scripted: str = "http://127.0.0.1:1/v1", **changes: Any) -> str:
    """The repository's policy with three more plans: `lab` has every model, those that misbehave too, and no limits but
    five concurrent requests; `tight` has `small`, 3 requests per minute and 200 tokens per day; `soft` degrades `large`
    after two of four requests. A file's name.

    More models of `lab`: `claude` is behind Anthropic's API, `nova` behind Bedrock's Converse; `scripted` is at the
    base URL of that name; `second-route` and `second-answer` have a first route that cannot be reached, or fails, and a
    second that serves; so has `guarded`, whose first route alone is fit for tenants with data rules.
    """
    policy = yaml.safe_load((ROOT / "policy.yaml").read_text())
    policy["upstreams"] |= {
        "anthropic": {"api": "anthropic", "base_url": "https://api.anthropic.com/v1", "secret": "tollgate/anthropic"},
        "scripted": {"api": "openai", "base_url": scripted},
        "converse": {"api": "converse", "region": "eu-central-1"},
        "nowhere": {"api": "openai", "base_url": "http://127.0.0.1:1/v1"},
        "cleared": {
            "api": "openai",
            "base_url": "http://127.0.0.1:1/v1",
            "region": "eu-west-1",
            "phi": True,
            "no_content_logging": True,
        },
    }
    for upstream in policy["upstreams"].values():
        upstream["timeouts"] = {"connect": 2, "first_byte": 3, "idle": 2, "total": 30}
    # its silence is a test that is busy, not a fault
    policy["upstreams"]["scripted"]["timeouts"] = {"connect": 2, "first_byte": 20, "idle": 20, "total": 60}
    price = {"input": 1, "output": 2}
    policy["models"] |= {name: {"route": [{"upstream": "openai", "model": name}], "price": price} for name in FAULTS}
    routes = {
        "claude": [("anthropic", "claude-demo")],
        "nova": [("converse", "eu.amazon.nova-lite-v1:0")],
        "nova-breaks": [("converse", "fault-close-mid-stream")],
        "scripted": [("scripted", "scripted-model")],
        "guarded": [("cleared", "none"), ("scripted", "scripted-model")],
        "second-route": [("nowhere", "none"), ("openai", "gpt-4o")],
        "second-answer": [("openai", "fault-500"), ("openai", "gpt-4o")],
    }
    for name, places in routes.items():
        route = [{"upstream": upstream, "model": model} for upstream, model in places]
        policy["models"][name] = {"route": route, "price": price}
    policy["plans"]["lab"] = {
        "models": ["small", "large", "embed", *routes, *FAULTS],
        "limits": [{"scope": "tenant", "concurrent": 5}],
        "budgets": [{"scope": "tenant", "usd": 1000, "per": "month"}],
    }
    policy["plans"]["tight"] = {
        "models": ["small"],
        "limits": [{"scope": "user", "requests": 3, "per": "minute"}],
        "budgets": [{"scope": "user", "tokens": 200, "per": "day"}],
    }
    policy["plans"]["soft"] = {
        "models": ["small", "large"],
        "budgets": [{"scope": "tenant", "requests": 4, "per": "day"}],
        "degrade": {"at": 0.5, "models": {"large": "small"}, "max_output_tokens": 5},
    }
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy | changes, sort_keys=False))
    return str(path)


def tollgate(*words: str) -> list[str]:
    """The command line of a `tollgate` command, run by this Python."""
    return [str(Path(sys.executable).with_name("tollgate")), *words]


class DevStack:
    """`tollgate dev --json`, from start to SIGTERM. `env` is added to the environment, `words` to the command line."""

    def __init__(self, *words: str, env: Mapping[str, str] | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        self._words = words
        self.env = {**os.environ, **FAST_MODEL, **(env or {})}
        for name in ("REDIS_URL", "TOLLGATE_STORE_URL", "AWS_ENDPOINT_URL", "LOCALSTACK_HOST"):
            if name not in (env or {}):
                self.env.pop(name, None)
        self.ready: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """For the OpenAI SDK."""
        return f"{self.url}/v1"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids as they were at the start."""
        return dict(self.ready["pids"])

    @cached_property
    def token_of_demo(self) -> str:
        return str(self.ready["token"])

    def __enter__(self) -> DevStack:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it says that it is ready. Its log is shown if it never does."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        self._logged = ""
        self.process = subprocess.Popen(
            tollgate("dev", "--port", str(self.port), "--json", *self._words),
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self.env,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        line = _line_within(self.process, START_S)
        if not line:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"tollgate dev did not start:\n{self.log()}")
        self.ready = json.loads(line)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit code. Harmless if it has ended."""
        if self._log.closed:
            return self.process.returncode
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"tollgate dev did not end within {STOP_S} s:\n{self.log()}") from None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._logged = self.log()
        self._log.close()
        return code

    def log(self) -> str:
        """What it wrote on standard error so far."""
        if self._log.closed:
            return self._logged
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A `tollgate` command in another terminal, for this stack."""
        env = {**self.env, "TOLLGATE_URL": self.url}
        done = subprocess.run(tollgate(*words), capture_output=True, text=True, env=env, cwd=ROOT, timeout=60)
        assert not check or done.returncode == 0, f"tollgate {' '.join(words)}: {done.stderr}\n{self.log()[-3000:]}"
        return done

    def token(self, tenant: str = "acme", user: str = "demo", ttl: int = 3600) -> str:
        """A token for a user of a tenant; the user is created."""
        return self.run("token", "--tenant", tenant, "--user", user, "--ttl", str(ttl)).stdout.strip()

    def new_tenant(self, name: str, plan: str) -> str:
        """A tenant of one's own, so that tests do not share limits; its name."""
        self.run("tenant", "create", name, "--plan", plan)
        return name

    def usage(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """The rows of `tollgate usage --json`."""
        words = ["usage", "--json"] + (["--tenant", tenant] if tenant else [])
        return list(json.loads(self.run(*words).stdout)["rows"])

    def model_counts(self) -> dict[str, int]:
        """The demo model's own books: requests, input_tokens, output_tokens."""
        with urllib.request.urlopen(f"{self.model_url}/_counts", timeout=5) as answer:
            return dict(json.load(answer))

    @property
    def model_url(self) -> str:
        """Where the demo model listens."""
        return str(self.ready["model_url"])


def _line_within(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The first line of standard output; empty if there is none in time."""
    import selectors

    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else b""
