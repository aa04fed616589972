"""The HTTP client and TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.raw_http import CHUNKED, OK, Peer, answering, client, fetch, on_both_loops, serve
from tollgate.adapters.http import ConnectFailed


@lru_cache(maxsize=1)
def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1, and its key (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tollgate test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signed.public_bytes(serialization.Encoding.PEM), private


def server_context() -> ssl.SSLContext:
    public, private = certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with TemporaryDirectory() as folder:
        pem = Path(folder) / "both.pem"
        pem.write_bytes(public + private)
        context.load_cert_chain(pem)
    return context


def trusting_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificate()[0].decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


@on_both_loops
async def test_tls_with_streaming_reuse_and_alpn() -> None:
    protocols = []

    async def handle(peer: Peer) -> None:
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        for _ in range(3):
            await peer.request()
            await peer.trickle(CHUNKED + b"b\r\nhello world\r\n0\r\nX-Sum: 1\r\n\r\n")
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 << 20))
        await peer.send(bytes(2 << 20))
        await peer.reader.read()

    async with serve(handle, server_context()) as (server, url), client(ssl_context=trusting_context()) as http:
        for _ in range(3):
            assert await fetch(http, url) == (200, b"hello world")
        response = await http.request("GET", url)
        await asyncio.sleep(0.05)
        assert len(await response.read(2 << 20)) == 2 << 20
        assert len(server.peers) == 1
        assert protocols == ["http/1.1"]


@on_both_loops
async def test_tls_to_somebody_else_is_refused() -> None:
    async with serve(answering(OK), server_context()) as (_, url):
        async with client() as unaware:  # the default trust store does not know the certificate
            unaware.warm()
            with pytest.raises(ConnectFailed):
                await unaware.request("GET", url)
        async with client(ssl_context=trusting_context()) as http:
            with pytest.raises(ConnectFailed):
                await http.request("GET", url.replace("127.0.0.1", "localhost"))
