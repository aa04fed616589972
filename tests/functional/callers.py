"""Callers of a running stack: a tenant of one's own in a moment, its tokens, plain requests, and what was recorded."""

from __future__ import annotations

import base64
import http.client
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPMessage
from itertools import count
from typing import Any

import boto3
import jwt
from openai import OpenAI

from tests.functional.stack import DevStack
from tests.tokens import sign
from tollgate.local import discovery
from tollgate.local.tokens import _moto_key

HELLO: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Hello, world"}]}
HELLO_ESTIMATE = 7
"""Tokens that the gateway takes the prompt of `HELLO` to have: all its bytes, names too, by four."""
LEDGER_WITHIN_S = 60.0
"""How long a test waits for usage to become visible: 10 s are promised, on a machine that does nothing else."""

Headers = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after a look at its shape: what OpenAI's SDK reads of it, and nothing else."""
        assert self.status >= 400
        assert self.headers["content-type"] == "application/json"
        (error,) = [self.json[name] for name in self.json] if set(self.json) == {"error"} else [None]
        assert isinstance(error, dict), self.body[:300]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        return error

    @property
    def content(self) -> str:
        """The text of a chat completion."""
        return str(self.json["choices"][0]["message"]["content"])


@dataclass(frozen=True)
class Caller:
    """One user of one tenant."""

    url: str
    tenant: str
    user: str
    token: str

    def request(self, method: str, path: str, body: bytes | None = None, headers: Headers = ()) -> Answer:
        """One request on a connection of its own, with this caller's token unless `headers` bring another."""
        with self.begin(method, path, body, headers) as response:
            return Answer(response.status, response.headers, response.read())

    @contextmanager
    def begin(
        self, method: str, path: str, body: bytes | None = None, headers: Headers = ()
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer's head; its body is read as it comes. Leaving closes the connection."""
        given = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        names = {name.lower() for name, _ in given}
        if "authorization" not in names:
            given.append(("authorization", f"Bearer {self.token}"))
        if body is not None and "content-type" not in names:
            given.append(("content-type", "application/json"))
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            connection.putrequest(method, path)
            for name, value in given:
                connection.putheader(name, value)
            if body is not None and "content-length" not in names:
                connection.putheader("content-length", str(len(body)))
            try:
                connection.endheaders(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the whole body was read: the answer is there
            response = connection.getresponse()
            try:
                yield response
            finally:
                response.close()
        finally:
            connection.close()

    def post(self, path: str, fields: Mapping[str, Any] | bytes, headers: Headers = ()) -> Answer:
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return self.request("POST", path, body, headers)

    def chat(self, **fields: Any) -> Answer:
        """One chat completion; `HELLO`, but for `fields`."""
        return self.post("/v1/chat/completions", {**HELLO, **fields})

    def get(self, path: str, headers: Headers = ()) -> Answer:
        return self.request("GET", path, headers=headers)

    def sdk(self, **options: Any) -> OpenAI:
        """OpenAI's own client, to be used in a `with`."""
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": self.token, **options})


class Callers:
    """Makes callers of one stack, and reads what the stack has recorded of them."""

    def __init__(self, stack: DevStack) -> None:
        self._stack = stack
        self._numbers = count(1)
        self._run = uuid.uuid4().hex[:6]

    def __call__(
        self,
        plan: str = "lab",
        *,
        user: str = "alice",
        limits: Sequence[Mapping[str, Any]] = (),
        budgets: Sequence[Mapping[str, Any]] = (),
    ) -> Caller:
        """A user of a new tenant on `plan`; `limits` and `budgets` are its own, in place of the plan's of the same
        kind and beside its others."""
        tenant = f"t-{self._run}-{next(self._numbers)}"
        self.put(tenant, plan, limits=limits, budgets=budgets)
        return self.colleague(tenant, user)

    def colleague(self, of: Caller | str, user: str) -> Caller:
        """Another user of the same tenant."""
        tenant = of if isinstance(of, str) else of.tenant
        return Caller(self._stack.url, tenant, user, self.token(tenant, user))

    def put(
        self,
        tenant: str,
        plan: str = "lab",
        *,
        limits: Sequence[Mapping[str, Any]] = (),
        budgets: Sequence[Mapping[str, Any]] = (),
        **attributes: Any,
    ) -> None:
        """Make or replace a tenant's item, as an operator does in the console: without a version, which the publisher
        gives it."""
        item = {"tenant": tenant, "plan": plan, "limits": list(limits), "budgets": list(budgets), **attributes}
        self._table("TENANTS").put_item(Item=item)

    def token(self, tenant: str, user: str, **claims: Any) -> str:
        """A token as the stack's own pool signs it; `claims` are changed, or with None left out."""
        header, payload = self._sample
        changed = {**payload, "tenant": tenant, "sub": user, "jti": uuid.uuid4().hex, **claims}
        return sign(header, {name: value for name, value in changed.items() if value is not None}, self._key)

    def entries(self, caller: Caller, at_least: int = 0) -> list[dict[str, Any]]:
        """The ledger's entries of the caller's tenant, oldest first, as soon as there are so many."""
        until = time.monotonic() + LEDGER_WITHIN_S
        while (counted := self._counted(caller.tenant)) < at_least:
            assert time.monotonic() < until, f"only {counted} of {at_least} entries within {LEDGER_WITHIN_S:g} s"
            time.sleep(0.1)
        found = [entry for entry in self._all_entries() if entry["tenant"] == caller.tenant]
        return sorted(found, key=lambda entry: entry["ts_us"])

    def _counted(self, tenant: str) -> int:
        """How many requests the tenant's report counts: a cheap question, unlike the one for all entries."""
        rows = self._table("LEDGER").query(
            KeyConditionExpression="pk = :t", ExpressionAttributeValues={":t": f"t#{tenant}"}
        )
        return sum(int(row["requests"]) for row in rows["Items"])

    def _all_entries(self) -> Iterator[dict[str, Any]]:
        table = self._table("LEDGER")
        options: dict[str, Any] = {
            "FilterExpression": "begins_with(pk, :u)",
            "ExpressionAttributeValues": {":u": "u#"},
        }
        while True:
            page = table.scan(**options)
            for item in page["Items"]:
                yield json.loads(item["r"])
            if "LastEvaluatedKey" not in page:
                return
            options["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _table(self, what: str) -> Any:
        return self._dynamodb.Table(self._environ[f"TOLLGATE_{what}_TABLE"])

    @cached_property
    def _environ(self) -> dict[str, str]:
        found = discovery.find({**self._stack.env, "TOLLGATE_URL": self._stack.url})
        assert found is not None, "the stack does not announce itself"
        return found

    @property
    def environ(self) -> dict[str, str]:
        """The variables by which the stack's parts are reached."""
        return dict(self._environ)

    @cached_property
    def _dynamodb(self) -> Any:
        environ = self._environ
        return boto3.resource(
            "dynamodb",
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            region_name=environ["AWS_REGION"],
            aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
        )

    @cached_property
    def _sample(self) -> tuple[dict[str, Any], dict[str, Any]]:
        head, body, _ = self._stack.token_of_demo.split(".")
        header, payload = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in (head, body))
        return header, {name: value for name, value in payload.items() if name != "plan"}

    @cached_property
    def _key(self) -> Any:
        """The pool's private key; see `tollgate.local.tokens`."""
        key = _moto_key()
        assert key is not None
        return jwt.PyJWK(key).key
