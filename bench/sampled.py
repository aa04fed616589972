"""The gateway, sampling its own stack: `python bench/sampled.py PORT REPORT.json [calls]`, run by hotspots.py.

SIGUSR1 starts, SIGUSR2 stops and writes the report.

A timer signal every millisecond of CPU time notes where the interpreter is, which distorts nothing that matters. With
`calls`, cProfile counts every call instead: exact numbers of calls, but times that favour code with few calls.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import signal
import sys
from collections import Counter
from types import FrameType

from tollgate.bootstrap import serve

PERIOD_S = 0.001


class Sampler:
    """Where CPU time goes: by function, alone and with everything that it calls."""

    def __init__(self) -> None:
        self.samples = 0
        self.alone: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def start(self) -> None:
        self.samples = 0
        for counter in (self.alone, self.whole, self.lines):
            counter.clear()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)

    def stop(self) -> dict[str, object]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {"samples": self.samples, "alone": self.alone, "whole": self.whole, "lines": self.lines}

    def _sample(self, number: int, frame: FrameType | None) -> None:
        self.samples += 1
        if frame is not None:
            self.alone[_name(frame)] += 1
            self.lines[f"{_name(frame)}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        self.whole.update(seen)


class Calls:
    """How often each function is called."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def start(self) -> None:
        self._profile = cProfile.Profile()
        self._profile.enable()

    def stop(self) -> dict[str, object]:
        self._profile.disable()
        stats = pstats.Stats(self._profile).stats  # type: ignore[attr-defined]  # typeshed lacks it
        rows = {_label(*key): (calls, alone, whole) for key, (_, calls, alone, whole, _) in stats.items()}
        return {"calls": rows}


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return _label(code.co_filename, code.co_firstlineno, code.co_qualname)


def _label(path: str, line: int, function: str) -> str:
    return f"{'/'.join(path.split('/')[-2:])} {function}" if line else function


def main() -> None:
    port, report = int(sys.argv[1]), sys.argv[2]
    profiler = Calls() if "calls" in sys.argv[3:] else Sampler()

    def report_to_file(*_: object) -> None:
        found = profiler.stop()
        with open(f"{report}.part", "w") as file:
            json.dump(found, file)
        os.rename(file.name, report)

    signal.signal(signal.SIGUSR1, lambda *_: profiler.start())
    signal.signal(signal.SIGUSR2, report_to_file)
    sys.exit(serve(port=port))


if __name__ == "__main__":
    main()
