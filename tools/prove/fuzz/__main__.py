"""Damage pictures, sound and bodies, and read them as the server does: each gives a result or names its field.

Decoders run in the server's guarded processes; one that crashes there is counted, since the server outlives it. What
ends otherwise is a breach, and its file is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
from structlog.testing import capture_logs

from aiservices.errors import InvalidInput
from aiservices.sandbox import Children, Limits
from tools.prove.fuzz.mutate import mutate, mutate_json
from tools.prove.fuzz.targets import TARGETS, corpus

LIMITS = Limits(processes=1, wall_s=10.0, memory_bytes=1 << 30)
SLACK_S = 5.0
"""What a busy machine may add to a limit."""

MAX_BODY_S = 2.0
"""For reading a body, which happens on the event loop up to 64 KiB and on a thread above."""

FOUND = Path(tempfile.gettempdir()) / "prove-fuzz"
"""Once what is wrong is mended, a file moves from there to the target's folder of ``corpora``."""

CRASHED = "crashed the decoder"
SHOWN_REASONS = 8


@attrs.define
class Count:
    """What came of one target's files."""

    tried: int = 0
    read: int = 0
    refused: Counter[str] = attrs.Factory(Counter)
    slowest_s: float = 0.0
    breaches: list[str] = attrs.Factory(list)


async def fuzz(name: str, chance: random.Random, *, runs: int | None, seconds: float, found: Path) -> Count:
    """Try one target.

    Args:
        name: of the target.
        chance: decides on the damage.
        runs: how many damaged files; None: for as long as there is time.
        seconds: how long at most.
        found: folder for files that are a breach.
    """
    count, kept, children = Count(), corpus(name), Children(LIMITS)
    ends_at = time.monotonic() + seconds
    try:
        for number in range(runs) if runs is not None else itertools.count():
            if time.monotonic() > ends_at:
                break
            damage = mutate_json if name == "body" and chance.random() < 0.5 else mutate
            chosen = kept[number] if number < len(kept) else damage(chance.choice(kept), chance.choice(kept), chance)
            await _try(name, chosen, children, count, found)
    finally:
        children.close()
    return count


async def _try(name: str, data: bytes, children: Children, count: Count, found: Path) -> None:
    count.tried += 1
    began, breach = time.monotonic(), ""
    try:
        await TARGETS[name](data, children)
        count.read += 1
    except InvalidInput as refused:
        count.refused[refused.reason] += 1
        if not refused.field.startswith("$") or not refused.reason:
            breach = f"no field is named: {refused}"
    except Exception as error:
        breach = f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - began
    count.slowest_s = max(count.slowest_s, took_s)
    if took_s > (MAX_BODY_S if name == "body" else LIMITS.wall_s) + SLACK_S:
        breach = breach or f"took {took_s:.1f} s"
    if breach:
        path = found / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        count.breaches.append(f"{breach[:300]}   ({path})")


def report(name: str, count: Count) -> None:
    """Print what came of one target."""
    crashes, refused = count.refused[CRASHED], count.refused.total()
    print(
        f"{name:8} {count.tried:7} tried, {count.read} read, {refused} refused in {len(+count.refused)} ways, "
        f"{crashes} crashes contained, slowest {count.slowest_s:.2f} s, {len(count.breaches)} breaches"
    )
    for reason, number in count.refused.most_common(SHOWN_REASONS):
        print(f"           {number:7} {reason[:100]!r}")
    print(*count.breaches[:10], sep="\n", end="\n" if count.breaches else "", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the proof; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/prove fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, in equal parts for all")
    parser.add_argument("--runs", type=int, default=None, help="most files of each, for a short form")
    parser.add_argument("--only", choices=sorted(TARGETS), default=None, help="one of them alone")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--found", type=Path, default=FOUND, help="folder for files that are a breach")
    given = parser.parse_args(arguments)
    given.found.mkdir(parents=True, exist_ok=True)
    names = [given.only] if given.only else [*TARGETS]
    breaches = 0
    for name in names:
        seconds = given.minutes * 60 / len(names)
        with capture_logs():
            work = fuzz(name, random.Random(given.seed), runs=given.runs, seconds=seconds, found=given.found)
            count = asyncio.run(work)
        report(name, count)
        breaches += len(count.breaches)
    print("held" if not breaches else f"{breaches} breaches")
    return int(breaches > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
