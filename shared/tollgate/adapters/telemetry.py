"""Log lines and metrics on stdout, one JSON object per line, in the shapes that Powertools for AWS Lambda writes.

Powertools' own logger and metrics cost more to import than the rest of a function that only logs denials, so the
functions on a request's path write the same shapes themselves: log lines with `level`, `location`, `message`,
`timestamp` and `service`, and CloudWatch's embedded metric format.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}

Value = int | float | tuple[int | float, str]
"""A metric's value: a count, or a value with its CloudWatch unit, as in ``(12.5, "Milliseconds")``."""


def log(level: str, message: str, /, **fields: Any) -> None:
    """Write one log line, unless `level` is below POWERTOOLS_LOG_LEVEL (or AWS_LAMBDA_LOG_LEVEL; default INFO)."""
    if _LEVELS[level] < _threshold():
        return
    frame = sys._getframe(1)
    now_s = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now_s))
    write(
        {
            "level": level,
            "location": f"{frame.f_code.co_name}:{frame.f_lineno}",
            "message": message,
            "timestamp": f"{stamp},{int(now_s * 1000) % 1000:03d}+0000",
            "service": service(),
            **fields,
        }
    )


def metric(namespace: str, dimensions: Mapping[str, str], /, **values: Value) -> None:
    """Write metrics as a line of their own."""
    write(emf(namespace, dimensions, **values))


def emf(namespace: str, dimensions: Mapping[str, str], /, **values: Value) -> dict[str, Any]:
    """Metrics in CloudWatch's embedded metric format; passed to `log` as fields, they make that line a metric too."""
    pairs = {name: value if isinstance(value, tuple) else (value, "Count") for name, value in values.items()}
    return {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": namespace,
                    "Dimensions": [list(dimensions)],
                    "Metrics": [{"Name": name, "Unit": unit} for name, (_, unit) in pairs.items()],
                }
            ],
        },
        **dimensions,
        **{name: value for name, (value, _) in pairs.items()},
    }


def service() -> str:
    """The name that stands in every line and is every metric's first dimension."""
    return os.environ.get("POWERTOOLS_SERVICE_NAME") or "tollgate"


def write(record: Mapping[str, Any]) -> None:
    """Write one line, whole: a single write, so that lines of several threads do not mix, and flushed, because
    Lambda may freeze the process as soon as the answer is out."""
    sys.stdout.write(json.dumps(record, separators=(",", ":"), default=str) + "\n")
    sys.stdout.flush()


def where(error: BaseException) -> str:
    """File and line of a mistake: a traceback's text could hold what a caller wrote."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace is not None else ""


def _threshold() -> int:
    name = os.environ.get("POWERTOOLS_LOG_LEVEL") or os.environ.get("AWS_LAMBDA_LOG_LEVEL") or "INFO"
    return _LEVELS.get(name.upper(), _LEVELS["INFO"])
