"""Measure every row once a round, the order turned on from round to round."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from tools.benchmarks.overhead.peers import ROOT, Peer
from tools.benchmarks.overhead.report import Row
from tools.benchmarks.overhead.servers import StartError, serving
from tools.benchmarks.overhead.wire import Outcome

WARM_UP_S = 1.0
BETWEEN_S = 1.5
"""About how long it takes to end a server and to start the load generator."""
END_LIMIT_S = 30.0

T = TypeVar("T")


@attrs.frozen
class Bench:
    """What a row is measured with.

    Attributes:
        generator: The interpreter of the load generator.
        core: The core that the load generator has to itself, where it has one.
        pythons: The interpreter of each peer, by its name.
        folder: Where the servers work and write their logs.
        seconds: How long a row is measured.
        warm_up_s: How long it is loaded before that.
    """

    generator: Path
    core: int | None
    pythons: Mapping[str, Path]
    folder: Path
    seconds: float
    warm_up_s: float = WARM_UP_S

    def measure(self, row: Row) -> Outcome:
        """Start the row's server, load it, and end it.

        Raises:
            StartError: The server did not come up.
            subprocess.SubprocessError: The load generator failed, or did not end.
        """
        with serving(row.peer, self.pythons[row.peer.name], self.folder) as port:
            plan = row.peer.plan(
                row.operation, port=port, callers=row.callers, warm_up_s=self.warm_up_s, seconds=self.seconds
            )
            text = json.dumps({**dataclasses.asdict(plan), "core": self.core})
            done = subprocess.run(
                [self.generator, "-m", "tools.benchmarks.overhead.load", text],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends that one
                timeout=self.warm_up_s + self.seconds + END_LIMIT_S,
            )
        return Outcome(**json.loads(done.stdout))


def rows_of(peers: Iterable[Peer], operations: Sequence[str], callers: Sequence[int]) -> list[Row]:
    """Return every row there is, those to be compared side by side."""
    peers = list(peers)
    return [
        Row(peer, operation, count)
        for operation in operations
        for count in callers
        for peer in peers
        if peer.offers(operation)
    ]


def turned(rows: Sequence[Row], number: int) -> list[Row]:
    """Return the rows in the order of a round.

    What is compared stays side by side, for a noisy minute should hit all of it; which comes first changes.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operation, row.callers), []).append(row)
    order = [_rotated(group, number) for group in groups.values()]
    return [row for group in _rotated(order, number) for row in group]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def estimate_s(rows: Iterable[Row], rounds: int, seconds: float) -> float:
    """Return about how many seconds all rounds take, installation left aside."""
    return rounds * sum(WARM_UP_S + seconds + row.peer.start_s + BETWEEN_S for row in rows)


def measure_all(rows: Sequence[Row], rounds: int, measure: Callable[[Row], Outcome]) -> dict[Row, list[Outcome | None]]:
    """Measure all rounds; a server that does not come up is left out from then on."""
    measured: dict[Row, list[Outcome | None]] = {row: [] for row in rows}
    absent: set[str] = set()
    for number in range(rounds):
        for row in turned(rows, number):
            outcome = None
            if row.peer.name not in absent:
                try:
                    outcome = measure(row)
                except StartError as error:
                    absent.add(row.peer.name)
                    say(f"{row.peer.title} is left out from here on: {error}")
                except subprocess.SubprocessError as error:
                    say(f"no figure: {error}")
                else:
                    say(f"round {number + 1}: {row}: {outcome.requests_per_s:.0f}/s, {outcome.errors} errors")
            measured[row].append(outcome)
    return {row: outcomes for row, outcomes in measured.items() if any(outcomes)}


def take_cores() -> int | None:
    """Keep this process, and so the servers, off one core; return that core, or None where there is but one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    os.sched_setaffinity(0, cores[:-1])
    return cores[-1]


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)
