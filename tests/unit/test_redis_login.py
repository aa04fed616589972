"""What a Redis URL may say, and how connections log in: with TLS, a password, or IAM tokens that are renewed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hiredis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tollgate.adapters import redis_connection
from tollgate.adapters.redis_cluster import RedisCluster, hash_tag, slot_of
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_connection import RedisAddress, RedisNode, tls_context
from tollgate.adapters.redis_iam import iam_login
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.adapters.redis_store import redis_limit_store
from tollgate.ports import StoreUnavailable

ENVIRON = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}
SERVERLESS = "limits-abc123.serverless.euc1.cache.amazonaws.com"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]  # a coroutine, whichever


class Server:
    """Answers +OK to everything, and remembers what it was asked and for which name."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.asked: list[list[bytes]] = []
        self.names: list[str | None] = []
        self._serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._server: asyncio.Server
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(certificate)
            self._context.sni_callback = lambda _, name, __: self.names.append(name)

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends its connections as well: what outlives its event loop is reported as a leak."""
        self._server.close()
        for task, writer in self._serving.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.sleep(0.05)  # the transports' last callbacks

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        parser = hiredis.Reader()
        try:
            while data := await reader.read(4096):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.asked.append(command)
                    writer.write(b"+OK\r\n")
        finally:
            writer.close()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of `SERVERLESS`, trusted like any that the machine trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVERLESS)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls_context.cache_clear()
    yield path
    tls_context.cache_clear()


class TestUrls:
    def test_everything_that_a_url_may_say(self) -> None:
        assert RedisAddress.parse("redis://localhost") == RedisAddress("localhost", 6379, tls=False)
        found = RedisAddress.parse("rediss://us%40er:p%3Aw@h:1/2?verify=no")
        assert found == RedisAddress("h", 1, True, "us@er", "p:w", 2, verify=False)
        found = RedisAddress.parse(f"rediss://default.iam-user@{SERVERLESS}:6379?cluster=yes&iam=Limits")
        assert found == RedisAddress(SERVERLESS, 6379, True, "default.iam-user", cluster=True, iam="Limits")

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("redis://h:1?clutser=yes", "'clutser'"),
            ("redis://h:1?cluster=true", "cluster is yes or no"),
            ("redis://h:1?verify=", "verify is yes or no"),
            ("redis://h:1/3?cluster=yes", "no database"),
            ("redis://u@h:1?iam=cache", "TLS"),
            ("rediss://h:1?iam=cache", "a user"),
            ("rediss://u:secret@h:1?iam=cache", "no password"),
            ("rediss://u@h:1?iam=", "cache-name"),
            ("http://h:1", "'http'"),
            ("redis://h:1/name", "'name'"),
        ],
    )
    def test_what_means_nothing_is_refused_without_the_password(self, url: str, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as refused:
            redis_limit_store(url, {})
        assert "secret" not in str(refused.value)

    def test_the_url_chooses_the_store(self) -> None:
        assert isinstance(redis_limit_store("redis://h:1", {}), RedisLimitStore)
        assert isinstance(redis_limit_store("redis://h:1?cluster=yes", {}), RedisClusterLimitStore)
        assert isinstance(redis_limit_store("rediss://u@h:1?cluster=yes&iam=c", ENVIRON), RedisClusterLimitStore)


class TestLogins:
    @pytest.mark.parametrize(
        ("host", "serverless"), [(SERVERLESS, True), ("clustercfg.limits.abc.euc1.cache.amazonaws.com", False)]
    )
    def test_an_iam_password_is_a_presigned_url_without_scheme(self, host: str, serverless: bool) -> None:
        async def scenario() -> None:
            login = iam_login(RedisAddress.parse(f"rediss://me@{host}?iam=Limits"), ENVIRON)
            user, password = await login()
            assert user == "me"
            parts = urlsplit(f"//{password}")
            query = parse_qs(parts.query)
            assert (parts.netloc, parts.path) == ("limits", "/")
            assert (query["Action"], query["User"], query["X-Amz-Expires"]) == (["connect"], ["me"], ["900"])
            assert query.get("ResourceType") == (["ServerlessCache"] if serverless else None)
            assert "/eu-central-1/elasticache/aws4_request" in query["X-Amz-Credential"][0]

        run(scenario)

    def test_each_connection_logs_in_with_a_password_of_its_own(self) -> None:
        made = iter(range(10))

        async def login() -> tuple[str, str]:
            return "me", f"token{next(made)}"

        async def scenario() -> None:
            async with Server() as server:
                node = RedisNode(RedisAddress("127.0.0.1", server.port, tls=False), login=login)
                for _ in range(2):
                    connection = await node.connected()
                    await connection.call("PING")
                    connection.close()
                node.close()
                assert server.asked == [[b"AUTH", b"me", b"token0"], [b"PING"], [b"AUTH", b"me", b"token1"], [b"PING"]]

        run(scenario)

    def test_a_connection_logs_in_again_before_it_is_ended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_connection, "RENEW_LOGIN", 0.02)
        monkeypatch.setattr(redis_connection, "RENEW_AGAIN", 0.02)
        made = iter(range(10))

        async def login() -> tuple[str, str]:
            number = next(made)
            if number == 1:
                raise StoreUnavailable("no credentials for a moment")
            return "me", f"token{number}"

        async def scenario() -> None:
            async with Server() as server:
                node = RedisNode(RedisAddress("127.0.0.1", server.port, tls=False), login=login)
                connection = await node.connected()
                for _ in range(1000):
                    if len(server.asked) >= 3:
                        break
                    await asyncio.sleep(0.005)
                assert [words[2] for words in server.asked[:3]] == [b"token0", b"token2", b"token3"]
                assert node.connection is connection
                node.close()

        run(scenario)

    def test_no_credentials_are_an_unavailable_store(self) -> None:
        async def login() -> tuple[str, str]:
            raise StoreUnavailable("cannot log in")

        async def scenario() -> None:
            node = RedisNode(RedisAddress("127.0.0.1", 1, tls=False), login=login)
            with pytest.raises(StoreUnavailable, match="cannot log in"):
                await node.connected()

        run(scenario)


class TestTls:
    def test_a_node_that_is_told_as_an_address_must_show_the_endpoints_certificate(self, certificate: Path) -> None:
        async def scenario() -> None:
            async with Server(certificate) as server:
                wrong = RedisNode(RedisAddress("127.0.0.1", server.port, tls=True))
                with pytest.raises(StoreUnavailable, match="SSLCertVerificationError"):
                    await wrong.connected()
                cluster = RedisCluster(RedisAddress(SERVERLESS, 6379, tls=True))
                node = cluster._node("127.0.0.1", server.port)
                assert (await (await node.connected()).call("PING")) == b"OK"
                assert server.names == [None, SERVERLESS]
                cluster.close()
                await asyncio.sleep(0.05)

        run(scenario)

    def test_old_protocols_are_refused(self) -> None:
        assert tls_context(True).minimum_version >= ssl.TLSVersion.TLSv1_2
        assert tls_context(True).verify_mode is ssl.CERT_REQUIRED


class TestSlots:
    def test_slots_are_those_of_the_specification(self) -> None:
        assert slot_of("123456789") == 0x31C3
        assert hash_tag("{user1000}.following") == "user1000"
        assert slot_of("user1000") == 3443

    @pytest.mark.parametrize(
        ("told", "host", "server_name"),
        [
            ([b"10.0.0.7", 6379, b"id"], "10.0.0.7", SERVERLESS),
            ([b"10.0.0.7", 6379, b"id", [b"hostname", b"node-1.cache"]], "10.0.0.7", "node-1.cache"),
            ([b"node-2.cache", 6379, b"id", [b"ip", b"10.0.0.8"]], "node-2.cache", None),
            ([None, 6380, b"id", []], SERVERLESS, None),
            ([b"", 6379, b"id"], SERVERLESS, None),
            ([b"?", 6379, b"id"], SERVERLESS, None),
        ],
    )
    def test_where_a_node_is_and_whom_its_certificate_names(
        self, told: list[Any], host: str, server_name: str | None
    ) -> None:
        async def scenario() -> None:
            cluster = RedisCluster(RedisAddress(SERVERLESS, 6379, tls=True))
            cluster._adopt([[0, 16383, told, [b"10.9.9.9", 6379, b"replica"]]], cluster._seed)
            (node,) = {owner for owner in cluster._owners if owner is not None}
            assert (node.address.host, node.address.port) == (host, told[1])
            assert node.address.server_name == server_name

        run(scenario)

    def test_a_master_that_left_the_map_and_is_back_is_greeted_anew(self) -> None:
        """The endpoint's own node, too: it has been a replica meanwhile."""

        async def scenario() -> None:
            cluster = RedisCluster(RedisAddress("127.0.0.1", 6379, tls=False))
            seed = cluster._seed
            owners = []
            for port in (6379, 6380, 6379):
                cluster._adopt([[0, 16383, [b"127.0.0.1", port, b"id"]]], seed)
                owners.append(cluster._owners[0])
            assert owners[0] is seed
            assert owners[2] is cluster._seed
            assert len(set(owners)) == 3

        run(scenario)

    def test_the_map_is_read_once_however_many_ask(self) -> None:
        async def scenario() -> None:
            with socket.create_server(("127.0.0.1", 0)) as closed:
                port = closed.getsockname()[1]
            cluster = RedisCluster(RedisAddress("127.0.0.1", port, tls=False))
            tries = [cluster.refresh() for _ in range(5)]
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            assert cluster._refresh() is None  # not again at once

        run(scenario)
