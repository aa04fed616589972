"""`tollgate dev`: the whole gateway on loopback, from API Gateway's stand-in to the ledger.

This process has the stand-in for API Gateway, the authorizer, metering and publisher functions, the log pipe and the
tables' streams; Redis, AWS, the demo model and the proxy have one each. They start side by side. Whatever was started
is stopped in the reverse order, so that nothing is lost: first no new requests are taken, then the proxy drains, then
its last usage records are metered, then the rest ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

from tollgate.local.children import NotStarted, kill_all, say
from tollgate.local.functions import LogLines

STOPPING = (signal.SIGINT, signal.SIGTERM) + (
    # under nohup it is ignored, and stays so
    () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
)


@dataclass(frozen=True)
class Options:
    """What `tollgate dev` was asked for. Port 0 stands for any free one."""

    port: int = 8080
    upstream: str | None = None
    policy: str | None = None
    json_output: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Ready:
    """What is told when requests are served. No token: there are no demo tenants. `model_url` is where the demo model,
    or the upstream, is."""

    url: str
    redis_url: str
    aws_endpoint_url: str
    model_url: str
    pids: Mapping[str, int]
    token: str = ""
    model: str = ""

    def lines(self, *, as_json: bool) -> Iterator[str]:
        if as_json:
            told = {
                name: getattr(self, name) for name in ("url", "redis_url", "aws_endpoint_url", "model_url", "token")
            }
            yield json.dumps({"ready": True, **told, "pids": dict(self.pids)})
            return
        yield f"ready {self.url}"
        if not self.token:
            yield "no demo tenants: this policy has none of their plans (tollgate tenant create NAME --plan PLAN)"
            return
        question = {"model": self.model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
        yield f"token {self.token}"
        yield (
            f"curl -N {self.url}/v1/chat/completions -H 'authorization: Bearer {self.token}' "
            f"-H 'content-type: application/json' -d '{json.dumps(question)}'"
        )


def run_dev(
    port: int = 8080,
    upstream: str | None = None,
    policy: str | None = None,
    json_output: bool = False,
    verbose: bool = False,
) -> int:
    """Run the stack until SIGINT or SIGTERM; the exit code. `upstream` is an OpenAI-compatible server that answers
    for every model; `policy` is a file."""
    options = Options(port, upstream, policy, json_output, verbose or bool(os.environ.get("TOLLGATE_VERBOSE")))
    for number in STOPPING:  # until the event loop takes them over
        signal.signal(number, _leave)
    out = sys.stdout
    # what the functions in this process print is their log, not this command's output
    sys.stdout = LogLines(verbose=options.verbose)
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            return runner.run(_run(options, out))
    except NotStarted as error:
        for line in str(error).splitlines():
            say(line)
        return 1
    finally:
        sys.stdout = out


async def _run(options: Options, out: TextIO) -> int:
    from tollgate.local.parts import start

    stop, broken = asyncio.Event(), asyncio.Event()

    def asked() -> None:
        if stop.is_set():  # asked twice: now, then
            kill_all()
            os._exit(1)
        stop.set()

    def gave_up() -> None:
        broken.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, asked)
    async with AsyncExitStack() as exits:
        starting = asyncio.create_task(start(options, exits, gave_up))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            for line in starting.result().lines(as_json=options.json_output):
                print(line, file=out, flush=True)
            await stopping
        else:
            starting.cancel()
            await asyncio.wait({starting})
        say("stopping")
    return int(broken.is_set())


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing was started yet."""
    raise SystemExit(0)


def _new_loop() -> Callable[[], AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows, and none is needed
        return None
    return uvloop.new_event_loop
