"""Several server processes on one socket: started, started again when they die, and ended together.

The supervisor forks before anything runs in it (no thread, no event loop), so a worker costs little memory of its own
and any factory will do. It holds the writing end of a pipe that every worker watches: closing it ends the workers in
order, and so does the supervisor's own death, however it comes.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from tollgate.adapters import telemetry
from tollgate.adapters.http_server import FAILED, NOT_STARTED
from tollgate.domain.dataclass import dataclass

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
LASTED_S = 30.0
"""A worker that ran this long had started well: its successor is started at once again."""


@dataclass(slots=True)
class _Worker:
    """A process, since when (monotonic seconds), and how long to wait before the next if it dies."""

    pid: int
    started: float
    pause_s: float = FIRST_PAUSE_S


def supervise(run: Callable[[int], int], listener: socket.socket, workers: int) -> int:
    """Run `run` in `workers` processes until SIGTERM or SIGINT; returns the exit code.

    `run` gets a file descriptor that becomes readable when the worker is to end; what it returns is the worker's exit
    code. The supervisor closes its `listener` when it ends, so that nobody connects to a socket that no worker serves.
    """
    return _Supervisor(run, listener).run(workers)


class _Supervisor:
    def __init__(self, run: Callable[[int], int], listener: socket.socket) -> None:
        self._run = run
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._due: list[tuple[float, float]] = []  # when workers are to be started again, and their next pause
        self._watched, self._held = os.pipe()
        self._wakeup, self._wake = os.pipe()
        self._signals: list[int] = []
        self._exit_code = 0

    def run(self, workers: int) -> int:
        os.set_blocking(self._wake, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for _ in range(workers):
            self._start(FIRST_PAUSE_S)
        stopping = False
        while self._workers or self._due:
            self._sleep()
            if self._signals:
                self._stop(again=stopping)
                stopping = True
            self._reap(stopping)
            if self._exit_code and not stopping:
                self._stop(again=False)
                stopping = True
            now = time.monotonic()
            for due in [due for due in self._due if due[0] <= now]:
                self._due.remove(due)
                self._start(due[1])
        return self._exit_code

    def _start(self, pause_s: float) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            self._workers[pid] = _Worker(pid, time.monotonic(), pause_s)
            return
        code = FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (self._held, self._wakeup, self._wake):
                os.close(descriptor)
            code = self._run(self._watched)
            sys.stdout.flush()
        except BaseException:  # noqa: BLE001 - told here: it must not become the supervisor's
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)  # a worker must never return into the supervisor's code

    def _reap(self, stopping: bool) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            worker = self._workers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if stopping:
                self._exit_code = self._exit_code or (code if code >= 0 else FAILED)
            elif code == NOT_STARTED and worker.pause_s == FIRST_PAUSE_S:
                self._exit_code = code  # it has said why; another one would say the same
            else:
                lasted = time.monotonic() - worker.started > LASTED_S
                pause_s = FIRST_PAUSE_S if lasted else worker.pause_s
                telemetry.log("ERROR", "a worker died, another is started", pid=pid, exit_code=code)
                self._due.append((time.monotonic() + pause_s, min(pause_s * 2, MAX_PAUSE_S)))

    def _stop(self, *, again: bool) -> None:
        """Ask the workers to end in order; `again`: at once."""
        self._due.clear()
        if not again:
            self._listener.close()
            os.close(self._held)
        else:
            for pid in self._workers:  # both signals of a worker's own: it may have been asked by the pipe alone
                os.kill(pid, signal.SIGTERM)
        self._signals.clear()

    def _sleep(self) -> None:
        """Until a signal comes, or a worker is due."""
        pause_s = max(0.0, min(when for when, _ in self._due) - time.monotonic()) if self._due else None
        if select.select([self._wakeup], [], [], pause_s)[0]:
            os.read(self._wakeup, 4096)
