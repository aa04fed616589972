"""Names of buckets: subjects and keys that no caller can make collide.

Every part that comes from outside is hashed (BLAKE2b, 128 bits) or, for addresses, parsed and re-printed, so no
id can contain a separator, a hash tag's brace or a pattern. All of a tenant's keys share one hash tag, so that a
Redis Cluster keeps them in one slot and one script call takes from all of them.
"""

from __future__ import annotations

import base64
import ipaddress
from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=16_384)
def digest(text: str) -> str:
    """22 URL-safe characters that stand for `text`."""
    raw = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return base64.urlsafe_b64encode(raw).decode()[:22]


@lru_cache(maxsize=16_384)
def address(ip: str) -> str:
    """The network that one `ip` limit counts: an IPv4 address, or the /64 of an IPv6 one (RFC 6177: one site has
    at least that). Unparsable text counts as one common address rather than being let through uncounted."""
    try:
        parsed = ipaddress.ip_address(ip)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)


def network(ip: str) -> str:
    """The neighbourhood of an address, for counting those who are not known: a /24, or the /48 of IPv6."""
    known = address(ip)
    if known == "unknown":
        return known
    return str(ipaddress.ip_network((known, 48 if ":" in known else 24), strict=False))


def ip_subject(ip: str) -> str:
    return "{i" + address(ip) + "}"


def tenant_subject(tenant: str) -> str:
    return "{" + digest(tenant) + "}"


def member_subject(tenant: str, kind: str, name: str) -> str:
    """A user (`u`), key (`k`) or team (`t`) of a tenant; in the tenant's hash slot."""
    return tenant_subject(tenant) + kind + digest(name)


def estimate_key(tenant: str, model: str) -> str:
    """What is learned of a tenant's calls to a model; in the tenant's hash slot."""
    return f"{tenant_subject(tenant)}e:{digest(model)}"


def global_subject(what: str = "") -> str:
    """Everything (``""``), or one model or upstream (``model:small``)."""
    return "{g}" + (digest(what) if what else "")
