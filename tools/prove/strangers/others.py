"""``python others.py GUARD < URLS``: what another guard lets through; runs where that guard is installed, without us.

Reads a JSON object of ``urls`` and ``names`` (what names resolve to), prints those URLs by which a connection was
``begun``, and those where it was to an address ``inside``. Nothing leaves the machine: no connection is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 1.0

Get = Callable[[str], Any]


def _requests() -> Get:
    requests = importlib.import_module("requests")
    return lambda url: requests.get(url, timeout=TIMEOUT_S)


def _advocate() -> Get:
    advocate = importlib.import_module("advocate")
    return lambda url: advocate.get(url, timeout=TIMEOUT_S)


def _requests_hardened() -> Get:
    hardened = importlib.import_module("requests_hardened")
    config = hardened.Config(
        ip_filter_enable=True, ip_filter_allow_loopback_ips=False, never_redirect=False, default_timeout=(1, 1)
    )
    manager = hardened.Manager(config)
    return lambda url: manager.send_request("GET", url)


def _safehttpx() -> Get:
    safehttpx = importlib.import_module("safehttpx")
    return lambda url: asyncio.run(safehttpx.get(url, timeout=TIMEOUT_S))


GUARDS = {
    "requests": _requests,
    "advocate": _advocate,
    "requests-hardened": _requests_hardened,
    "safehttpx": _safehttpx,
}
"""Named as on PyPI; the first is none and shows what the URLs do unguarded."""


class Watch:
    """Writes down each connection that is begun, and lets none of them be made."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            self.seen.append(str(arguments[1][0]))
            raise OSError("no connection is made here")


def is_inside(address: str) -> bool:
    """Whether an address is not one of the public internet, or holds one that is not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or ip
    return not inner.is_global or inner.is_multicast


def main(arguments: list[str]) -> None:
    """Try every URL."""
    given, watch = json.load(sys.stdin), Watch()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        name = (host.decode() if isinstance(host, bytes) else str(host)).lower().rstrip(".")
        known = given["names"].get(name, [host])
        return [found for address in known for found in resolve(address, port, *rest, **named)]

    socket.getaddrinfo = getaddrinfo
    get, begun, inside = GUARDS[arguments[0]](), [], []
    for url in given["urls"]:
        watch.seen.clear()
        with contextlib.suppress(Exception):
            get(url)
        if watch.seen:
            begun.append(url)
        if any(is_inside(address) for address in watch.seen):
            inside.append(url)
    json.dump({"begun": begun, "inside": inside}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
