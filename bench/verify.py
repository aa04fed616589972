"""What it costs to verify an RS256 token beside a bare PyJWT decode with a cached key: `python -m bench.verify`.

Each token is new to both; rounds of the two alternate, so that a machine that slows down slows both. CPU time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import jwt

from tests.tokens import ISSUER, KeySet, authenticator, claims, rsa_key, token

ROUND = 250


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help=f"of {ROUND} tokens each")
    parser.add_argument("--json", action="store_true", help="one line for programs")
    options = parser.parse_args()
    key = rsa_key().public_key()
    known = authenticator(KeySet())
    known.warm()

    def bare(credential: bytes) -> object:
        return jwt.decode(credential, key, algorithms=["RS256"], issuer=ISSUER, options={"require": ["exp"]})

    times: dict[str, list[float]] = {"bare": [], "ours": [], "again": []}
    for round_ in range(options.rounds):
        batch = [token(claims(sub=f"user-{round_}-{i}")).encode() for i in range(ROUND)]
        for name, verify in (("bare", bare), ("ours", known.verify), ("again", known.recall)):
            times[name].append(_each_us(verify, batch))
    found = {f"{name}_us": round(median(each), 1) for name, each in times.items()}
    found["ratio"] = round(median(o / b for o, b in zip(times["ours"], times["bare"], strict=True)), 2)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"PyJWT decode, cached key   {found['bare_us']:6.1f} us")
        print(f"Tollgate, token never seen {found['ours_us']:6.1f} us   ratio {found['ratio']:.2f}")
        print(f"Tollgate, seen lately      {found['again_us']:6.1f} us")
    return 0


def _each_us(verify: Callable[[bytes], object], batch: Sequence[bytes]) -> float:
    started = time.process_time_ns()
    for credential in batch:
        verify(credential)
    return (time.process_time_ns() - started) / len(batch) / 1000


if __name__ == "__main__":
    sys.exit(main())
