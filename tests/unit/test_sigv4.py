"""Our signatures are botocore's, for whatever is signed."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import botocore.auth
import botocore.credentials
import botocore.session
from botocore.awsrequest import AWSRequest
from botocore.model import ServiceId
from botocore.signers import RequestSigner
from hypothesis import example, given
from hypothesis import strategies as st

from tollgate.adapters.sigv4 import Credentials, presigned_url, signed_headers

NOW = datetime(2026, 11, 21, 12, 0, 7, tzinfo=UTC)
REGION = "eu-central-1"

names = st.sampled_from(["content-type", "x-amz-target", "accept", "x-custom", "Anthropic-Version"])
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
segments = st.text("abcXYZ019-_.~:", max_size=8) | st.sampled_from([".", "..", "", "a%3A0", "%2F", "%C3%A9"])
parameters = st.tuples(st.text("abc-_", min_size=1, max_size=5), st.text("xyz09+", max_size=5) | st.just("%2F%20"))


def theirs(
    method: str, url: str, headers: list[tuple[str, str]], body: bytes, service: str, credentials: Credentials
) -> str:
    request = AWSRequest(method, url, data=body)
    for name, value in headers:
        request.headers.add_header(name, value)
    known = botocore.credentials.Credentials(credentials.access_key, credentials.secret_key, credentials.token or None)
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        botocore.auth.SigV4Auth(known, service, REGION).add_auth(request)
    return str(request.headers["Authorization"])


@given(
    method=st.sampled_from(["POST", "GET", "PUT"]),
    origin=st.sampled_from(["https://dynamodb.eu-central-1.amazonaws.com", "http://127.0.0.1:4566", "http://[::1]:80"]),
    path=st.lists(segments, max_size=5),
    query=st.lists(parameters, max_size=4),
    headers=st.lists(st.tuples(names, values), max_size=5),
    body=st.binary(max_size=100),
    service=st.sampled_from(["dynamodb", "bedrock", "secretsmanager"]),
    token=st.sampled_from(["", "session/token+with=signs"]),
)
@example("POST", "https://bedrock-runtime.eu-central-1.amazonaws.com", ["model", "a.b-v1%3A0", "invoke"], [],
         [("accept", "a  b"), ("x-custom", "1"), ("x-custom", "2")], b"{}", "bedrock", "t")  # fmt: skip
def test_signs_as_botocore_does(
    method: str, origin: str, path: list[str], query: list[tuple[str, str]], headers: list[tuple[str, str]],
    body: bytes, service: str, token: str,
) -> None:  # fmt: skip
    url = f"{origin}/{'/'.join(path)}" + ("?" + "&".join(f"{k}={v}" for k, v in query) if query else "")
    credentials = Credentials("AKIDEXAMPLE", "secret/key", token)
    ours = dict(
        signed_headers(
            method,
            url,
            [(name.encode(), value.encode()) for name, value in headers],
            body,
            service=service,
            region=REGION,
            credentials=credentials,
            now_s=NOW.timestamp(),
        )
    )
    assert ours[b"authorization"].decode() == theirs(method, url, headers, body, service, credentials)
    assert ours.get(b"x-amz-security-token", b"").decode() == token


def test_credentials_do_not_print() -> None:
    assert "secret" not in repr(Credentials("AKID", "secret", "secret-token"))


def their_url(url: str, credentials: Credentials) -> str:
    """As AWS's own example for ElastiCache makes it."""
    known = botocore.credentials.Credentials(credentials.access_key, credentials.secret_key, credentials.token or None)
    events = botocore.session.get_session().get_component("event_emitter")
    signer = RequestSigner(ServiceId("elasticache"), REGION, "elasticache", "v4", known, events)
    request = {"method": "GET", "url": url, "body": {}, "headers": {}, "context": {}}
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        return str(signer.generate_presigned_url(request, "connect", expires_in=900, region_name=REGION))


@given(
    origin=st.sampled_from(["https://my-cache", "http://my-cache", "https://my-cache:6379"]),
    user=st.text("abcXYZ019-_.~ :/+=&%é", min_size=1, max_size=20),
    serverless=st.booleans(),
    token=st.sampled_from(["", "session/token+with=signs"]),
)
def test_presigns_as_botocore_does(origin: str, user: str, serverless: bool, token: str) -> None:
    query = {"Action": "connect", "User": user} | ({"ResourceType": "ServerlessCache"} if serverless else {})
    url = f"{origin}/?{urlencode(query, quote_via=quote)}"
    credentials = Credentials("AKIDEXAMPLE", "secret/key", token)
    ours = presigned_url(
        url, service="elasticache", region=REGION, credentials=credentials, now_s=NOW.timestamp(), expires_s=900
    )
    theirs = urlsplit(their_url(url, credentials))
    assert urlsplit(ours)[:3] == theirs[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(theirs.query)
