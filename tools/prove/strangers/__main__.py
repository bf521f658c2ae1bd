"""Send hostile URLs through every client for hosts that callers name, and count what was connected.

Two witnesses, neither of them the guard: a listener on every address of this machine, and Python's audit of each
connection that the process begins. Allowed is one address and port, which stands for the public internet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import attrs
from structlog.testing import capture_logs

from aiservices.errors import FetchError, JobFailed
from aiservices.fetch import Fetcher
from aiservices.jobs import Destination, OutputFile
from aiservices.outputs.callers import CallersBuckets
from aiservices.settings import FetchConfig, OutputsConfig
from tools.prove.strangers.compare import compare
from tools.prove.strangers.corpus import NAMES, hostile_urls
from tools.prove.strangers.hosts import BEHAVIOURS, PUBLIC, Names, canary, hostile_server

TIMEOUT_S = 1.0
MAX_S = TIMEOUT_S + 2.0
"""A request may take its own limit, and what a busy machine adds."""

MAX_GROWTH_MIB = 128
"""Of memory over everything: a download may hold 25 MiB, and twice that while its body is put together."""

REDIRECTS = (301, 302, 303, 307, 308)

Client = Callable[[str], Awaitable[Any]]


@attrs.define
class Count:
    """What was tried and what did not hold."""

    tried: int = 0
    slowest_s: float = 0.0
    breaches: list[str] = attrs.Factory(list)


class Witness:
    """Writes down each connection that this process begins, but for the one that is allowed."""

    def __init__(self) -> None:
        self.allowed: tuple[str, int] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.allowed is not None and arguments[1][:2] != self.allowed:
            self.seen.append(str(arguments[1]))


def clients(fetcher: Fetcher) -> dict[str, Client]:
    """The three ways to a host that a caller names."""
    buckets = CallersBuckets(OutputsConfig(callers_timeout_s=TIMEOUT_S), fetcher)
    file = OutputFile("audio", "audio/wav", b"a" * 1000)

    async def fetch(url: str) -> None:
        await fetcher.fetch(url, field="$.url", kind="image")

    async def webhook(url: str) -> None:
        await fetcher.post_json(url, b"{}", headers={}, timeout_s=TIMEOUT_S)

    async def store(url: str) -> None:
        to = Destination(access_id="a", access_secret="b", bucket_name="bucket", endpoint_url=url)
        await buckets.upload(to, (file,), lambda one: one.name)

    return {"fetch": fetch, "webhook": webhook, "store": store}


async def tried(client: Client, url: str, count: Count) -> None:
    """Send one URL; whatever is not an error of ours is a breach."""
    count.tried += 1
    began = time.monotonic()
    try:
        with contextlib.suppress(FetchError, JobFailed):
            await client(url)
    except Exception as error:
        count.breaches.append(f"{url[:80]!r}: {type(error).__name__}: {error}")
    seconds = time.monotonic() - began
    count.slowest_s = max(count.slowest_s, seconds)
    if seconds > MAX_S:
        count.breaches.append(f"{url[:80]!r}: took {seconds:.1f} s")


async def prove(limit: int, answers: int) -> int:
    """Run it all; the number of breaches.

    Args:
        limit: of the hostile URLs, for a short form.
        answers: how many of the hostile answers.
    """
    witness, failed = Witness(), 0
    async with canary() as (inside, heard), hostile_server() as port:
        witness.allowed = (PUBLIC, port)
        fetcher = Fetcher(FetchConfig(allow_hosts=(f"{PUBLIC}:{port}",), timeout_s=TIMEOUT_S), resolver=Names(NAMES))
        await fetcher.start()
        urls, public = hostile_urls(inside)[:limit], f"http://{PUBLIC}:{port}"
        redirects = [f"{public}/redirect/{status}/{quote(url, safe='')}" for url in urls for status in REDIRECTS]
        rebinding = f"http://rebind.test:{port}/redirect/302/{quote(f'http://rebind.test:{port}/a', safe='')}"
        groups = {
            "hostile URLs": urls,
            "redirects to them": redirects,
            "rebinding names": [rebinding, f"http://rebind.test:{inside}/"] * 20,
            "hostile answers": [f"{public}/{how}" for how in BEHAVIOURS[:answers]],
        }
        before_mib = _peak_mib()
        for name, client in clients(fetcher).items():
            for what, group in groups.items():
                count = Count()
                for url in group:
                    await tried(client, url, count)
                failed += len(count.breaches)
                print(f"{name:8} {what:18} {count.tried:5}   slowest {count.slowest_s:5.2f} s")
                print(*count.breaches[:5], sep="\n", end="\n" if count.breaches else "")
        growth_mib = _peak_mib() - before_mib
        await fetcher.close()
        witness.allowed = None
    print(f"connections inside: {len(witness.seen)}, heard there: {len(heard)} ({sum(heard)} bytes)")
    print(f"memory grew by {growth_mib:.0f} MiB, {MAX_GROWTH_MIB} are allowed")
    return failed + len(witness.seen) + len(heard) + (growth_mib > MAX_GROWTH_MIB)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/prove strangers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--urls", type=int, default=10_000, help="at most so many hostile URLs, for a short form")
    parser.add_argument("--answers", type=int, default=len(BEHAVIOURS), help="at most so many kinds of hostile answers")
    parser.add_argument("--others", action="store_true", help="what guards from PyPI do with the URLs, for comparison")
    given = parser.parse_args(arguments)
    if given.others:
        compare()
        return 0
    with capture_logs():
        breaches = asyncio.run(prove(given.urls, given.answers))
    print("held" if not breaches else f"{breaches} breaches")
    return int(breaches > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
