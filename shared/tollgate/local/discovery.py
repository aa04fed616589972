"""How a command in another terminal finds a running local stack.

Each stack keeps one file in a folder of its user, readable by that user only, with the environment variables that
reach its parts. The stack holds a lock on its file for as long as it lives, however it dies: a file that can be
locked is stale. (A process id could have been given to another process by then.)
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

URL_VARIABLE = "TOLLGATE_URL"


def runtime_dir(environ: Mapping[str, str]) -> Path:
    """The user's folder for files of running processes, made if it is missing."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base and os.path.isdir(base) and os.access(base, os.W_OK):
        folder = Path(base) / "tollgate"
    else:
        folder = Path(tempfile.gettempdir()) / f"tollgate-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        # in a shared temporary folder somebody else may have made it, to be told our secrets
        raise PermissionError(f"{folder} is not a folder of this user")
    return folder


@dataclass
class StateFile:
    """A running stack's file. Closing it ends the announcement."""

    path: Path
    _fd: int

    def close(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._fd)


def announce(url: str, env: Mapping[str, str], environ: Mapping[str, str]) -> StateFile:
    """Let other terminals find the stack at `url` through the variables `env`."""
    folder = runtime_dir(environ)
    fd, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    fcntl.flock(fd, fcntl.LOCK_EX)
    state = {"url": url, "pid": os.getpid(), "started": time.time(), "env": {**env, URL_VARIABLE: url}}
    os.write(fd, json.dumps(state, indent=1).encode())
    # in place only when it is complete and locked
    path = folder / f"{os.getpid()}.json"
    os.rename(name, path)
    return StateFile(path, fd)


def find(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The variables of the newest running stack, or of the one at TOLLGATE_URL; None if there is none."""
    wanted = environ.get(URL_VARIABLE, "").rstrip("/")
    running = [state for state in _running(environ) if not wanted or state["url"].rstrip("/") == wanted]
    if not running:
        return None
    newest = max(running, key=lambda state: float(state["started"]))
    return {str(name): str(value) for name, value in newest["env"].items()}


def _running(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for path in runtime_dir(environ).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(json.load(file))
            else:
                path.unlink()
    return found
