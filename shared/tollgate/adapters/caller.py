"""Who the AWS credentials of this terminal belong to (STS GetCallerIdentity), for signing changes."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Mapping

from tollgate.adapters.aws import AwsError, blocking_credentials
from tollgate.adapters.aws_environment import endpoint
from tollgate.adapters.sigv4 import signed_headers

TIMEOUT_S = 3.0
_ARN = re.compile(r"<Arn>(arn:[^<]{1,512})</Arn>")


def caller_arn(environ: Mapping[str, str]) -> str:
    """The caller's ARN; empty where STS does not tell it: no change is held up for its signature. Blocks."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    url = endpoint("sts", region, environ) + "/"
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    try:
        credentials = blocking_credentials(environ)
        signed = signed_headers(
            "POST", url, headers, body, service="sts", region=region, credentials=credentials, now_s=time.time()
        )
        request = urllib.request.Request(url, body, {name.decode(): value.decode() for name, value in signed})  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - AWS, or the emulator named
            found = _ARN.search(answer.read(65_536).decode("utf-8", "replace"))
    except (AwsError, OSError, ValueError):
        return ""
    return found[1] if found else ""
