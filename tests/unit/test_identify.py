"""Whose address a request has, where proxies stand before the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from tollgate.domain import keys
from tollgate.services.exchange import Exchange
from tollgate.services.identify import Credentials


def address(peer: str, forwarded: str, trusted: str = "10.0.0.0/8, 2001:db8:ffff::/48") -> str:
    """What the gateway counts by."""
    nobody: Any = None
    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope = {"method": "GET", "path": "/", "headers": headers, "client": (peer, 1)}
    return keys.address(Credentials(nobody, trusted)._address(Exchange(scope, nobody, nobody)))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.1", "203.0.113.9", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "6.6.6.6, 203.0.113.9, 10.2.0.1", "203.0.113.9"),
        # a socket for both kinds tells IPv4 like this, and so do proxies that have one
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, ::ffff:10.2.0.1", "203.0.113.9"),
        ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        # with ports, as some proxies write them
        ("10.0.0.1", "203.0.113.9:1234", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:1234, 10.2.0.1:80", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::"),
        ("10.0.0.1", "203.0.113.9, [2001:db8:ffff::1]:443, [::ffff:10.2.0.1]:443", "203.0.113.9"),
        ("10.0.0.1", "2001:db8:0:1:2:3:4:443", "2001:db8:0:1::"),  # all of it is the address
        ("10.0.0.1", "2001:db8::1:443", "2001:db8::"),
        ("10.0.0.1", "::1", "::"),
        # nonsense is one common address
        ("10.0.0.1", "[2001:db8::1", "2001:db8::"),
        ("10.0.0.1", "nobody:80", "unknown"),
        ("10.0.0.1", "[]:80", "unknown"),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has_added(peer: str, forwarded: str, expected: str) -> None:
    assert address(peer, forwarded) == expected


def test_networks_of_trusted_proxies_have_to_be_networks() -> None:
    with pytest.raises(ValueError, match="TOLLGATE_TRUSTED_PROXIES"):
        address("10.0.0.1", "", "10.0.0.0/8, everybody")
