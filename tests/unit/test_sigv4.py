"""Our signatures are botocore's, for whatever is signed."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch

import botocore.auth
import botocore.credentials
from botocore.awsrequest import AWSRequest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.sigv4 import Credentials, signed_headers

NOW = datetime(2026, 11, 21, 12, 0, 7, tzinfo=UTC)
names = st.sampled_from(["content-type", "x-amz-target", "accept", "x-custom"])
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
segments = st.lists(st.text("abcXYZ019-_.~", min_size=1, max_size=8).filter(lambda s: s.strip(".")), max_size=4)
queries = st.dictionaries(st.text("abc-_", min_size=1, max_size=5), st.text("xyz09", max_size=5), max_size=3)


@given(
    st.sampled_from(["POST", "GET", "PUT"]),
    st.sampled_from(["https://dynamodb.eu-central-1.amazonaws.com", "http://127.0.0.1:4566"]),
    segments,
    queries,
    st.dictionaries(names, values),
    st.binary(max_size=100),
    st.sampled_from(["dynamodb", "bedrock", "secretsmanager"]),
    st.sampled_from(["", "session/token+with=signs"]),
)
def test_signs_as_botocore_does(
    method: str, origin: str, path: list[str], query: dict[str, str], headers: dict[str, str], body: bytes,
    service: str, token: str,
) -> None:  # fmt: skip
    url = f"{origin}/{'/'.join(path)}" + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
    ours = dict(
        signed_headers(
            method,
            url,
            [(name.encode(), value.encode()) for name, value in headers.items()],
            body,
            service=service,
            region="eu-central-1",
            credentials=Credentials("AKIDEXAMPLE", "secret/key", token),
            now_s=NOW.timestamp(),
        )
    )
    theirs = AWSRequest(method, url, headers, body)
    known = botocore.credentials.Credentials("AKIDEXAMPLE", "secret/key", token or None)
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        botocore.auth.SigV4Auth(known, service, "eu-central-1").add_auth(theirs)
    assert ours[b"authorization"].decode() == theirs.headers["Authorization"]


def test_credentials_do_not_print() -> None:
    assert "secret" not in repr(Credentials("AKID", "secret", "secret-token"))
