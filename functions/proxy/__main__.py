"""How Lambda starts the proxy (run.sh): `python3 -m functions.proxy PORT [SECONDS]`, the latter to drain in."""

import sys

from functions.proxy.app import app
from tollgate.adapters.http_server import DRAIN_S, serve

if __name__ == "__main__":
    port, *drain = sys.argv[1:]
    sys.exit(serve(lambda: app, "127.0.0.1", int(port), drain_s=float(*drain) if drain else DRAIN_S))
