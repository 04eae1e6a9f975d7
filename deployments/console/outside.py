"""How the console is seen from outside: at which address, by TLS or not, behind a proxy or not; and by that, from which
address a request comes and whether a page of ours has sent it.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from blocks.errors import ConfigError

Origin = tuple[str, str, int]
"""Scheme, host in small letters, port."""
PORTS = {"http": 80, "https": 443}


class Outside(NamedTuple):
    """`public` is what browsers have in their address line, where that is a proxy's: then, and only then, the proxy is
    believed whom it has asked for. `tls` where the console itself speaks it."""

    public: Origin | None = None
    tls: bool = False

    @property
    def secure(self) -> bool:
        """Whether browsers come by TLS."""
        return self.public[0] == "https" if self.public else self.tls

    @property
    def alone(self) -> bool:
        """Whether all that browsers find at that name, on any port, is ours to bind to TLS: not beside Prefect's UI."""
        return self.public is not None and self.public[0] == "https" and self.public[2] == PORTS["https"]

    def address(self, scope: Scope) -> str:
        """Who asks. Behind a proxy the last that X-Forwarded-For names: it is the proxy that has written it; what stands
        before it may have come with the request."""
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        if self.public is None:
            return peer
        told = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).rpartition(",")[2].strip()
        return _address(told) or peer

    def is_from_elsewhere(self, head: Headers) -> bool:
        """Whether the browser says that another site has sent this. Programs that are no browser say nothing."""
        site, origin = head.get("sec-fetch-site"), head.get("origin")
        if site is not None and site != "same-origin":  # which no page can forge
            return True
        if origin is None:
            return False
        found = origin_of(origin)
        if self.public is not None:
            return found != self.public
        if site is not None:  # it has compared the two itself
            return False
        schemes = ("https",) if self.tls else ("http", "https")
        return found is None or found not in [origin_of(f"{s}://{head.get('host', '')}") for s in schemes]

    def is_from_here(self, head: Headers) -> bool:
        """Whether the browser says that a page of ours has sent this."""
        return not self.is_from_elsewhere(head) and ("sec-fetch-site" in head or "origin" in head)


DIRECT = Outside()
"""No proxy, no TLS."""


def public_origin(url: str) -> Origin:
    """What `--public-url` says. Raises ConfigError."""
    found = origin_of(url.removesuffix("/"))
    if found is None or not url.isascii():
        raise ConfigError(
            f"{url!r} is no address of a console",
            remedy="write --public-url as browsers show it, without a path: https://console.example.org",
        )
    return found


def origin_of(text: str) -> Origin | None:
    """An origin as browsers write it, `https://host:port`; None if it is none."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in PORTS or not parts.hostname or not plain:
        return None
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme]


def household(address: str) -> str:
    """Whom one address stands for: of IPv6, all 2^64 that one subscriber has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def _address(told: str) -> str | None:
    """The address in an element of X-Forwarded-For, which some proxies write with a port."""
    if told.startswith("["):
        told = told[1:].partition("]")[0]
    elif told.count(":") == 1:
        told = told.partition(":")[0]
    try:
        return str(ipaddress.ip_address(told))
    except ValueError:
        return None
