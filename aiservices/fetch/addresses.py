"""Which addresses may be connected: those of the public internet, and those that the configuration allows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TypeAlias

import attrs

from aiservices.errors import ConfigError
from aiservices.fetch.refusal import Refusal

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
        "192.88.99.0/24",  # the withdrawn 6to4 relays, RFC 7526
        "168.63.129.16/32",  # public by number, but inside Azure it is the host's own agent
        "2001::/23",  # IETF protocol assignments, RFC 2928; Teredo, which may embed any IPv4 address, is among them
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, withdrawn by RFC 7526; embeds any IPv4 address
        "3fff::/20",  # documentation, RFC 9637
    )
)
"""What :mod:`ipaddress` of some supported Python calls global, and we do not."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out, RFC 4291
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; behind DNS64 every IPv4-only name resolves into it


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public internet, where nobody's inside is.

    Stricter than ``is_global``: no multicast, and of IPv6 the assigned unicast space alone (RFC 4291), without zones.
    An IPv4 address that is mapped (``::ffff:0:0/96``) or translated (NAT64, RFC 6052) is judged as itself; the other
    ways to embed one (6to4, Teredo, IPv4-compatible) are refused as a whole.
    """
    if isinstance(address, ipaddress.IPv6Address):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address.ipv4_mapped is not None or address in _NAT64:
            return address.scope_id is None and is_public(embedded)
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


@attrs.frozen
class AllowList:
    """Hosts of one's own that may be private. An entry without a port allows every port.

    A name is allowed whatever it resolves to; an address or network also by any name that resolves into it.
    """

    hosts: frozenset[tuple[str, int | None]]
    networks: tuple[tuple[Network, int | None], ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AllowList:
        """Read ``minio``, ``minio:9000``, ``127.0.0.1:9000``, ``[::1]:9000`` or ``10.0.0.0/8``.

        Raises:
            ConfigError: naming the entry.
        """
        hosts: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for entry in entries:
            name, port = _split_port(entry.strip().lower())
            try:
                networks.append((ipaddress.ip_network(name.strip("[]")), port))
            except ValueError:
                hosts.add((_allowed_name(name, entry), port))
        return cls(frozenset(hosts), tuple(networks))

    def covers_host(self, host: str, port: int) -> bool:
        """Tell whether a name and port are allowed as they are written."""
        name = host.lower().removesuffix(".")
        return (name, port) in self.hosts or (name, None) in self.hosts

    def permits(self, address: Address, port: int) -> bool:
        """Tell whether an address and port may be connected: public, or in an allowed network."""
        return is_public(address) or self.covers_address(address, port)

    def covers_address(self, address: Address, port: int) -> bool:
        """Tell whether an address and port lie in an allowed network."""
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network and allowed_port in (None, port) for network, allowed_port in self.networks)


def _split_port(entry: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(?P<host>\[[^\]]+\]|[^:]+):(?P<port>[0-9]{1,5})", entry)
    return (match["host"], int(match["port"])) if match else (entry, None)


def _allowed_name(name: str, entry: str) -> str:
    try:
        if literal_address(name.removesuffix(".")) is None:
            return name.removesuffix(".")
    except Refusal:
        pass
    raise ConfigError(f"[fetch] allow_hosts: {entry!r} is not a host, host:port, address or network")


def literal_address(host: str) -> Address | None:
    """Return the address that a host spells, None for a name; refuse what is neither for everyone who may read it.

    A host whose last label is a number is an IPv4 address to browsers and ``inet_aton`` (WHATWG URL, "ends in a
    number"), in short, octal or hex form too: only four plain decimals pass.

    Raises:
        Refusal: two programs may read the host differently.
    """
    labels = host.split(".")
    try:
        if ":" in host:
            return ipaddress.IPv6Address(host)
        if _NUMBER.fullmatch(labels[-1]):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise Refusal("has a host that is neither a name nor a plain IP address") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refusal("has a host that is neither a name nor a plain IP address")
    return None
