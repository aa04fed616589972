"""`tollgate serve` processes that start in an instant, for tests that kill hundreds: forked from one that has imported
everything. For each line on standard input one is started on ``PORT``, its pid is told, and its end is waited for.

    python -m tests.functional.forker PORT RECORDS      what they write on standard output is added to RECORDS
"""

from __future__ import annotations

import os
import sys

from tollgate import bootstrap
from tollgate.adapters import (  # noqa: F401 - imported before the fork, not after
    failover,
    http_server,
    jwks,
    policy_file,
    redis_store,
)
from tollgate.services import application, gateway, identify  # noqa: F401


def main() -> None:
    port, records = int(sys.argv[1]), sys.argv[2]
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            os.dup2(os.open(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 1)
            os._exit(bootstrap.serve("127.0.0.1", port))
        print(pid, flush=True)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
