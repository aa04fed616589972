"""How Lambda starts the proxy (run.sh): `python3 -m functions.proxy PORT [SECONDS]`, the latter to drain in."""

import gc
import sys

gc.disable()  # until the server listens: nothing of what is imported is garbage, and looking for it takes time

from functions.proxy.app import app  # noqa: E402
from tollgate.adapters.http_server import DRAIN_S, serve  # noqa: E402

if __name__ == "__main__":
    port, *drain = sys.argv[1:]
    sys.exit(serve(lambda: app, "127.0.0.1", int(port), drain_s=float(*drain) if drain else DRAIN_S))
