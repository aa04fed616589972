"""`make bench`: the gateway beside a bare proxy and a direct call, in one run. Prints a table, writes JSON.

Hardware that is shared drifts by half within seconds. So everything is measured in rounds, in each of which the three
take turns, and what counts is the ratio within a round; the table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from exactness import Exactness, judge, usage_records
from imports import ImportTime, cold_imports
from rig import BENCH, CHUNKS, PYTHON, SLOW_MS, CannotRun, Load, Process, Rig

CONNECTIONS = (1, 8, 64)
EXACT_RATE, EXACT_BURST = 200, 100
"""As policy.yaml limits the tenant `exact`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that takes requests; a direct call has no process of ours."""

    name: str
    port: int
    process: Process | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One target in one round."""

    load: Load
    cpu_us: float
    """CPU of the target's process per answer; 0 for a direct call."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Medians over the rounds."""

    rps: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    ratio: float
    """Requests per second, as a share of the bare proxy's in the same round."""
    bad: int
    """Answers other than 200, and broken connections, of all rounds."""


@dataclass(frozen=True, slots=True)
class Latency:
    """What a target adds to a direct call, in milliseconds."""

    added_p50_ms: float
    added_p99_ms: float


@dataclass(frozen=True, slots=True)
class Store:
    """What the gateway asks of its stores, per admitted request."""

    redis_calls: float
    dynamodb_calls: int
    """In all, after the first request of each tenant."""
    unrecorded: int
    """Answers without a usage record."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load lasts")
    parser.add_argument("--json", type=Path, help="where the figures go (default: bench/results/<time>.json)")
    options = parser.parse_args()
    try:
        results = measure(options.rounds, options.seconds)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 1
    show(results)
    path = options.json or BENCH / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, default=asdict) + "\n")
    print(f"\nwritten to {path}")
    return 0


def _version() -> str:
    """Of the interpreter that is measured."""
    words = [PYTHON, "-c", "import platform; print(platform.python_version(), platform.python_compiler())"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def measure(rounds: int, seconds: float) -> dict[str, object]:
    """Everything, in one run."""
    with Rig() as rig:
        say("cold imports")
        imports = cold_imports(2 * rounds + 1, rig.gateway_core)
        token = rig.issuer.token("bench")
        gateway, port = rig.gateway()
        bare, bare_port = rig.bare_proxy(rig.upstream_port)
        rss_start = gateway.rss_mb()
        status, _, body = rig.ask(port, token)
        if status != 200:
            raise CannotRun(f"the gateway answers {status}: {body.decode()}")
        rig.load(port, token, connections=64, seconds=seconds / 2)
        rig.issuer.aws_calls.clear()
        targets = [
            Target("direct", rig.upstream_port, None), Target("bare", bare_port, bare),
            Target("gateway", port, gateway),
        ]  # fmt: skip
        throughput: dict[str, dict[str, Throughput]] = {}
        for stream in (False, True):
            for connections in CONNECTIONS:
                name = f"{'stream of ' + str(CHUNKS) if stream else 'whole'}, {connections}"
                say(name)
                load = partial(rig.load, token=token, connections=connections, seconds=seconds, stream=stream)
                throughput[name] = summary(rounds_of(targets, rounds, load))
        rss_load = gateway.rss_mb()
        say("store")
        store = ask_of_stores(rig, gateway, port, token, seconds)
        say("exactness")
        exact = flood(rig, gateway, port, seconds)
        say(f"latency, upstream of {SLOW_MS} ms")
        latency = added_latency(rig, port, token, rounds, seconds)
    return {
        "machine": {"cores": rig.cores, "python": _version(), "system": platform.system()},
        "throughput": throughput,
        "latency": latency,
        "memory_mb": {"start": rss_start, "after_load": rss_load},
        "store": store,
        "exactness": exact,
        "imports": imports,
    }


def rounds_of(targets: Sequence[Target], rounds: int, load: Callable[[int], Load]) -> dict[str, list[Sample]]:
    """Each target in each round; every other round in reverse order. `load` is told the target's port."""
    found: dict[str, list[Sample]] = {target.name: [] for target in targets}
    for number in range(rounds):
        for target in targets if number % 2 else reversed(targets):
            before = target.process.cpu_us() if target.process else 0
            done = load(target.port)
            used = target.process.cpu_us() - before if target.process else 0
            found[target.name].append(Sample(done, used / max(1, done.requests)))
    return found


def summary(samples: dict[str, list[Sample]]) -> dict[str, Throughput]:
    bare = [sample.load.rps for sample in samples["bare"]]
    return {
        name: Throughput(
            median(sample.load.rps for sample in taken),
            median(sample.cpu_us for sample in taken),
            median(sample.load.p50_us for sample in taken) / 1000,
            median(sample.load.p99_us for sample in taken) / 1000,
            median(sample.load.rps / base for sample, base in zip(taken, bare, strict=True)),
            sum(sample.load.refused + sample.load.errors for sample in taken),
        )
        for name, taken in samples.items()
    }


def added_latency(rig: Rig, port: int, token: str, rounds: int, seconds: float) -> dict[str, Latency]:
    """What the gateway and a bare proxy add to a direct call, one caller at a time."""
    _, bare_port = rig.bare_proxy(rig.slow_port)
    targets = [Target("direct", rig.slow_port, None), Target("bare", bare_port, None), Target("gateway", port, None)]
    load = partial(rig.load, token=token, connections=1, seconds=2 * seconds, model="bench-slow")
    samples = rounds_of(targets, rounds, load)
    direct = [sample.load for sample in samples["direct"]]

    def added(name: str, value: Callable[[Load], float]) -> float:
        loads = [sample.load for sample in samples[name]]
        return median(value(load) - value(base) for load, base in zip(loads, direct, strict=True)) / 1000

    return {
        name: Latency(added(name, lambda load: load.p50_us), added(name, lambda load: load.p99_us))
        for name in ("bare", "gateway")
    }


def ask_of_stores(rig: Rig, gateway: Process, port: int, token: str, seconds: float) -> Store:
    """Script calls per request, by Redis's own count; calls to DynamoDB since the start; records on stdout."""
    connections = 8
    records = len(usage_records(gateway.log, "usage.close", "bench"))
    rig.redis("CONFIG", "RESETSTAT")
    load = rig.load(port, token, connections=connections, seconds=seconds)
    time.sleep(0.5)  # those that the loader left in flight
    calls = rig.redis_calls()
    recorded = len(usage_records(gateway.log, "usage.close", "bench")) - records
    scripts = calls.get("evalsha", 0) + calls.get("eval", 0)
    return Store(scripts / recorded, sum(rig.issuer.aws_calls.values()), max(0, load.requests - recorded))


def flood(rig: Rig, gateway: Process, port: int, seconds: float) -> dict[str, float]:
    """A limit under a flood: what it admits, and what refusing costs."""
    token = rig.issuer.token("exact")
    rig.redis("CONFIG", "RESETSTAT")
    before = gateway.cpu_us()
    load = rig.load(port, token, connections=8, seconds=2 * seconds)
    used = gateway.cpu_us() - before
    time.sleep(0.5)
    calls = rig.redis_calls()
    found: Exactness = judge(usage_records(gateway.log, "usage.open", "exact"), EXACT_RATE, EXACT_BURST)
    scripts = calls.get("evalsha", 0) + calls.get("eval", 0)
    return {
        **asdict(found),
        "false_refusals": found.false_refusals,
        "refused": load.refused,
        "refused_per_second": load.refused * load.rps / max(1, load.requests),
        "refused_without_store": 1 - max(0, scripts - 2 * found.admitted) / max(1, load.refused),
        "cpu_us_per_answer": used / max(1, load.requests),
    }


def say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


def show(results: dict[str, object]) -> None:
    """The table, for people."""
    throughput, latency = results["throughput"], results["latency"]
    assert isinstance(throughput, dict)
    assert isinstance(latency, dict)
    print(f"\n{'answers, connections':<22}{'direct/s':>10}{'bare/s':>9}{'gateway/s':>11}{'of bare':>9}", end="")
    print(f"{'bare us':>9}{'gateway us':>12}{'p50 ms':>8}{'p99 ms':>8}{'bad':>5}")
    for name, row in throughput.items():
        direct, bare, gateway = row["direct"], row["bare"], row["gateway"]
        print(f"{name:<22}{direct.rps:>10,.0f}{bare.rps:>9,.0f}{gateway.rps:>11,.0f}{gateway.ratio:>9.0%}", end="")
        print(f"{bare.cpu_us:>9.0f}{gateway.cpu_us:>12.0f}{gateway.p50_ms:>8.2f}{gateway.p99_ms:>8.2f}{gateway.bad:>5}")
    print("(us: CPU of the process per answer, so 1,000,000 / us is what one core of its own could serve)")
    print(f"\nadded at 1 connection, upstream of {SLOW_MS} ms:", end="")
    for name, added in latency.items():
        print(f"  {name} p50 {added.added_p50_ms:.2f} ms, p99 {added.added_p99_ms:.2f} ms;", end="")
    memory, store, exact, imports = (results[name] for name in ("memory_mb", "store", "exactness", "imports"))
    assert isinstance(memory, dict)
    assert isinstance(store, Store)
    assert isinstance(exact, dict)
    assert isinstance(imports, dict)
    print(f"\nmemory: {memory['start']:.0f} MB at the start, {memory['after_load']:.0f} MB after load")
    print(f"Redis script calls per admitted request: {store.redis_calls:.3f}", end="")
    print(f"; DynamoDB calls on the warm path: {store.dynamodb_calls}; answers without a record: {store.unrecorded}")
    print(f"a limit of {EXACT_RATE}/s under a flood: {exact['admitted']} of {exact['allowed']} admitted, ", end="")
    print(f"{exact['beyond']} beyond the limit, {exact['false_refusals']} refused falsely")
    print(f"refusals: {exact['refused_per_second']:,.0f}/s, {exact['cpu_us_per_answer']:.0f} us of CPU each, ", end="")
    print(f"{exact['refused_without_store']:.1%} without a store call")
    print("\ncold import, ms above a bare interpreter: median (range)")
    for name, found in imports.items():
        assert isinstance(found, ImportTime)
        print(f"  {name:<14}{found.median_ms:>6.0f}  ({found.lowest_ms:.0f} to {found.highest_ms:.0f})")


if __name__ == "__main__":
    sys.exit(main())
