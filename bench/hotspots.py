"""Where the gateway's CPU time goes, per request: `python bench/hotspots.py [--stream] [--calls] [--top N]`.

(Not called profile.py: the standard library's cProfile would import it instead of its own `profile`.)
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from rig import BENCH, CannotRun, Rig

SECONDS = 12.0
CONNECTIONS = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/hotspots.py", description=__doc__)
    parser.add_argument("--stream", action="store_true", help="answers of 20 chunks")
    parser.add_argument("--calls", action="store_true", help="count calls with cProfile rather than sample")
    parser.add_argument("--top", type=int, default=40, help="rows of each table")
    options = parser.parse_args()
    try:
        with Rig() as rig, tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            words = [str(BENCH / "sampled.py"), "{port}", str(report), *(["calls"] if options.calls else [])]
            process, port = rig.gateway(rig.python(*words))
            token = rig.issuer.token("bench")
            rig.load(port, token, connections=CONNECTIONS, seconds=1, stream=options.stream)
            process.signal(signal.SIGUSR1)
            rig.ask(port, token)  # the handler runs with the next event
            used = process.cpu_us()
            load = rig.load(port, token, connections=CONNECTIONS, seconds=SECONDS, stream=options.stream)
            used = process.cpu_us() - used
            process.signal(signal.SIGUSR2)
            while not report.exists():
                rig.ask(port, token)
            found = json.loads(report.read_text())
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{load.requests} requests, {load.rps:.0f}/s, {used / load.requests:.0f} us of CPU each, {load.refused} refused"
    )
    if options.calls:
        print_calls(found["calls"], load.requests, options.top)
    else:
        for name, title in (("alone", "alone"), ("whole", "with what it calls"), ("lines", "by line")):
            print_samples(title, found[name], found["samples"], used / load.requests, options.top)
    return 0


def print_samples(title: str, counts: dict[str, int], samples: int, cpu_us: float, top: int) -> None:
    print(f"\n{title}: us of CPU per request")
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:top]:
        print(f"{count / samples * cpu_us:8.1f}  {name}")


def print_calls(rows: dict[str, tuple[int, float, float]], requests: int, top: int) -> None:
    print("\n   calls   alone us   whole us   (each per request; cProfile's own cost included)")
    for name, (calls, alone, whole) in sorted(rows.items(), key=lambda item: -item[1][1])[:top]:
        print(f"{calls / requests:8.2f} {alone / requests * 1e6:10.1f} {whole / requests * 1e6:10.1f}   {name}")


if __name__ == "__main__":
    sys.exit(main())
