"""Hostile URLs: addresses inside, in every spelling that some program reads as one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

INSIDE = (
    "127.0.0.1", "127.0.0.53", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1",
    "100.100.100.200", "169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "198.18.0.1",
    "224.0.0.1", "255.255.255.255", "240.0.0.1",
)  # fmt: skip
"""Loopback, private networks, and where clouds keep their metadata."""

INSIDE_6 = (
    "::1", "::", "0:0:0:0:0:0:0:1", "fe80::1", "fe80::1%25lo", "::1%25lo", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1", "2001:db8::1", "3fff::1", "100::1", "2001::1", "2001:10::1", "2001:20::1", "5f00::1", "64:ff9b:1::1",
)  # fmt: skip

TRICKS = (
    "http://a@127.0.0.1:{port}/", "http://a:b@127.0.0.1:{port}/", "http://example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/", "http://127.0.0.1:{port}?@example.com/",
    "http://example.com\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@example.com/", "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "http:\\\\127.0.0.1:{port}/", "//127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/\r\nHost: a", "http://127.0.0.1 :{port}/",
    "http://127.0.0.1%00:{port}/", "http://127.0.0.1%2f:{port}/", "http://%31%32%37.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/", "http://127。0。0。1:{port}/", "http://127\uff0e0\uff0e0\uff0e1:{port}/",
    "http://١٢٧.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST:{port}/", "http://localhost.:{port}/",
    "http://a.localhost:{port}/", "http://ⓛocalhost:{port}/", "http://loc%61lhost:{port}/", "http://127.0.0.1:+{port}/",
    "http://127.0.0.1:{port}{port}/", "http://[127.0.0.1]:{port}/", "http://[::1:{port}/", "http://::1:{port}/",
    "http://[v1.a]:{port}/",
    "http://[2001:0:7f00:1::7f00fffe]:{port}/", "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_a",
    "dict://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "unix:///var/run/docker.sock", "javascript:alert(1)",
    "jar:http://127.0.0.1:{port}/!a", "ldap://127.0.0.1:{port}/", "http+unix://%2fvar%2frun%2fdocker.sock/",
    "HTTP://127.0.0.1:{port}/", "hTtPs://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "https://[::1]:{port}/",
    "http://inside.test:{port}/", "http://mixed.test:{port}/", "http://six.test:{port}/", "http://INSIDE.test.:{port}/",
)  # fmt: skip

NAMES = {
    "inside.test": ["127.0.0.1"],
    "mixed.test": ["93.184.216.34", "127.0.0.1"],
    "six.test": ["::ffff:127.0.0.1"],
}
"""What the names of the tricks resolve to."""


def hostile_urls(port: int) -> list[str]:
    """Return every URL once.

    Args:
        port: where someone listens who should hear nothing.
    """
    hosts = [host for address in INSIDE for host in spellings(address)]
    hosts += [f"[{address}]" for address in INSIDE_6]
    urls = [f"http://{host}:{port}/" for host in hosts] + [trick.format(port=port) for trick in TRICKS]
    return list(dict.fromkeys(urls))


def spellings(text: str) -> Iterator[str]:
    """Yield an IPv4 address as programs read it: ``inet_aton``'s forms, and those that IPv6 embeds it in."""
    number = int(ipaddress.IPv4Address(text))
    a, b, c, d = number.to_bytes(4, "big")
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    yield from (text, f"{text}.", f"{number}", f"{number:#x}", f"0{number:o}", f"{number:#X}", f"{number + 2**32}")
    yield from (f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{c * 256 + d}", f"{a:#x}.{b:#x}.{c:#x}.{d:#x}")
    yield from (f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a:03}.{b:03}.{c:03}.{d:03}", f"{a:#x}.{b}.{c}.0{d:o}")
    yield from (f"[::ffff:{text}]", f"[::ffff:{high}:{low}]", f"[::{text}]", f"[::ffff:0:{text}]")
    yield from (f"[64:ff9b::{text}]", f"[64:ff9b:1::{text}]", f"[2002:{high}:{low}::1]", f"[::ffff:{text}%25lo]")
    yield f"[2001:0:{high}:{low}::{(number ^ 0xFFFFFFFF) >> 16:x}:{(number ^ 0xFFFFFFFF) & 0xFFFF:x}]"
