"""Run a command that dies with its parent: ``python -I -S launcher.py PARENT_PID COMMAND...``.

`tollgate dev` starts each of its processes through this file, so that nothing is left behind even when it is killed
with SIGKILL. It does so here, in the new process, because code between fork and exec must not run in a process that
has threads. The command keeps this process's id. Standard library only, and as little of it as possible: every start
pays for it.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)
    os.execv(command[0], command)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
