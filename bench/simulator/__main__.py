"""Run scenarios: ``python -m bench.simulator --scenario outage --seed 7``; `make simulate` does it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.simulator.report import Figures, figures, table
from bench.simulator.scenarios import SCENARIOS, Scenario
from bench.simulator.simulation import Simulation
from bench.simulator.stores import MakeStore, RedisMemory
from bench.simulator.virtual_time import run


def simulate(scenario: Scenario, seed: int, make_store: MakeStore = RedisMemory) -> Figures:
    world = Simulation(scenario, seed, make_store)
    with contextlib.redirect_stdout(io.StringIO()):  # thousands of containers log their breakers
        run(world.run(), seed)
    return figures(world)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulator", description=__doc__)
    parser.add_argument("--scenario", default="steady", choices=[*SCENARIOS, "all"], help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--containers", type=int, help="at most so many")
    parser.add_argument("--tenants", type=int)
    parser.add_argument("--minutes", type=float, help="of virtual time")
    parser.add_argument("--rps", type=float, help="requests per second, without floods")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="all figures, on stdout or into FILE")
    given = parser.parse_args()
    changes: dict[str, Any] = {
        name: getattr(given, name) for name in ("containers", "tenants", "minutes", "rps") if getattr(given, name)
    }
    gc.set_threshold(100_000, 50, 100)  # there is little garbage, and much that is not
    runs: list[Figures] = []
    for name in SCENARIOS if given.scenario == "all" else [given.scenario]:
        scenario, began_s = replace(SCENARIOS[name], **changes), time.process_time()
        print(f"{name}: {scenario.says} ...", end="", flush=True, file=sys.stderr)
        runs.append({"seed": given.seed, **simulate(scenario, given.seed)})
        gc.collect()  # a whole fleet is one cycle
        most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f" {time.process_time() - began_s:.0f} s of CPU, at most {most_mb:.0f} MB so far", file=sys.stderr)
    if given.json is not None:
        text = json.dumps(runs, separators=(",", ":"))
        if given.json == "-":
            print(text)
            return 0
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
