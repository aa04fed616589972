"""`rediss://`: the store over TLS, to a real server, and to nobody whose certificate does not name it.

Redis may be built without TLS (the one that `make setup` fetches is), so a proxy speaks it before the server."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fault_proxy import FaultProxy
from tests.servers import start_redis
from tollgate.adapters.redis_connection import tls_context
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.adapters.redis_store import redis_limit_store
from tollgate.domain import keys
from tollgate.domain.limits import Admission, Budget, BudgetTake, Scope, Settlement, Unit, Window
from tollgate.local.children import free_port
from tollgate.ports import StoreUnavailable

PASSWORD = "secret-of-this-test"
DAY = timedelta(days=1)
MINUTE = 60_000_000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that wants a password."""
    found = free_port()
    process = start_redis(found, "--requirepass", PASSWORD)
    try:
        yield found
    finally:
        process.kill()
        process.wait()


USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class Authority:
    """Signs certificates, as Python 3.13 wants them: with every extension of RFC 5280."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        made = self._named(self._name, self._key.public_key(), timedelta())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = dict.fromkeys(USAGES, False) | {"key_cert_sign": True}
        made = made.add_extension(x509.KeyUsage(**usage), critical=True)
        self.certificate = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server(self, folder: Path, address: str = "127.0.0.1", ago: timedelta = timedelta()) -> ssl.SSLContext:
        """What a server at this address speaks TLS with, by a certificate that was made a while ago, for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        made = self._named(name, key.public_key(), ago)
        named = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        signed = made.add_extension(named, critical=False).sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = folder / f"{uuid.uuid4().hex}.pem"
        path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _named(self, name: x509.Name, key: ec.EllipticCurvePublicKey, ago: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC) - ago
        made = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key)
        made = made.serial_number(x509.random_serial_number())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = made.add_extension(issuer, critical=False)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return made.not_valid_before(now - DAY / 2).not_valid_after(now + DAY / 2)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """Trusted, like any that the machine trusts."""
    trusted = Authority()
    path = tmp_path / "authority.pem"
    path.write_bytes(trusted.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls_context.cache_clear()
    yield trusted
    tls_context.cache_clear()


def store(proxy: FaultProxy, query: str = "") -> RedisLimitStore:
    """As the environment's URL makes it."""
    made = redis_limit_store(f"rediss://default:{PASSWORD}@127.0.0.1:{proxy.port}{query}", {})
    assert isinstance(made, RedisLimitStore)
    return made


async def work(limits: RedisLimitStore) -> None:
    """An admission and its settlement, and what is left afterwards."""
    tenant = uuid.uuid4().hex
    subject = keys.tenant_subject(tenant)
    limit = Budget(Scope.TENANT, Unit.TOKENS, 100, Window.LIFE, "tenant.tokens.life")
    label, start, end = Window.LIFE.bounds(0)
    take = BudgetTake(subject, f"{subject}:b:{limit.id}:{label}", limit, 60, 60, label, start, end, seed=0)
    assert (await limits.admit(Admission("a", [take], MINUTE, tenant))).admitted
    assert await limits.settle(Settlement("a", [take], [20], tenant))
    assert list((await limits.admit(Admission("b", [take], MINUTE, tenant))).values) == [80]


def test_the_store_works_over_tls_and_its_connection_may_break(port: int, authority: Authority, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FaultProxy(port, tls=authority.server(tmp_path)) as proxy:
            over_tls = store(proxy)
            await work(over_tls)
            assert proxy.accepted == 1
            proxy.reset()
            await work(over_tls)
            assert proxy.accepted == 2
            await over_tls.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("somebody else's", "unable to get local issuer certificate"),
        ("another address", "IP address mismatch"),
        ("expired", "certificate has expired"),
    ],
)
def test_a_wrong_certificate_is_refused_before_the_password_is_sent(
    port: int, authority: Authority, tmp_path: Path, wrong: str, reason: str
) -> None:
    signer = Authority() if wrong == "somebody else's" else authority
    address = "127.0.0.2" if wrong == "another address" else "127.0.0.1"
    context = signer.server(tmp_path, address, DAY if wrong == "expired" else timedelta())

    async def scenario() -> None:
        async with FaultProxy(port, tls=context) as proxy:
            refusing = store(proxy)
            with pytest.raises(StoreUnavailable, match="SSLCertVerificationError") as raised:
                await work(refusing)
            assert re.search(reason, str(raised.value.__cause__))
            assert proxy.accepted == 0, "no handshake was completed"
            await refusing.aclose()
            trusting = store(proxy, "?verify=no")
            await work(trusting)
            await trusting.aclose()

    asyncio.run(scenario())


def test_a_server_that_speaks_no_tls_is_no_server(port: int, authority: Authority) -> None:
    async def scenario() -> None:
        async with FaultProxy(port) as plain:
            with pytest.raises(StoreUnavailable):
                await work(store(plain))

    asyncio.run(scenario())
