"""Medians, spreads and ratios of what was measured, as a table for reading and as JSON."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs

from tools.benchmarks.overhead.peers import OPERATIONS, Peer
from tools.benchmarks.overhead.wire import Outcome

BUSY_CLIENT = 0.95
"""Share of a core above which the load generator, not the server, may be what was measured."""

Measured = Mapping["Row", Sequence[Outcome | None]]
"""The outcome of each round, None where there was none."""


@attrs.frozen
class Row:
    """What is measured at once: a server's operation at a number of callers."""

    peer: Peer = attrs.field(eq=lambda peer: peer.name)
    operation: str
    callers: int

    def __str__(self) -> str:
        return f"{self.peer.title}, `{self.operation}`, {self.callers} callers"


@attrs.frozen
class Spread:
    """The median of the rounds, and their least and greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return that of some values; None where there are none."""
        known = [value for value in values if not math.isnan(value)]
        return cls(median(known), min(known), max(known)) if known else None


def spread(outcomes: Sequence[Outcome | None], name: str) -> Spread | None:
    """Return the spread of one number of the outcomes."""
    return Spread.of([getattr(outcome, name) for outcome in outcomes if outcome])


def ratio(ours: Sequence[Outcome | None], theirs: Sequence[Outcome | None]) -> Spread | None:
    """Return our requests a second in theirs, round by round: what slowed a round slowed both."""
    pairs = [(a.requests_per_s, b.requests_per_s) for a, b in zip(ours, theirs, strict=True) if a and b]
    return Spread.of([a / b for a, b in pairs if b])


def markdown(measured: Measured, reference: Peer, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return a table for each operation, what the rows mean and what they were measured on."""
    lines = []
    for operation, meaning in OPERATIONS.items():
        rows = [row for row in measured if row.operation == operation]
        if rows:
            lines += [f"### `{operation}`: {meaning}", "", *_table(rows, measured, reference), ""]
    lines += _notes(measured, reference, settings)
    return "\n".join([*lines, "", *_about(machine)])


def _table(rows: Sequence[Row], measured: Measured, reference: Peer) -> list[str]:
    polls = rows[0].operation == "poll"
    heads = ["callers", "server", "requests/s", "p50 ms", "p99 ms", *(["polls"] if polls else []), "errors"]
    heads += [f"{reference.title} / it"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in sorted(rows, key=lambda row: row.callers):
        ours = measured.get(Row(reference, row.operation, row.callers))
        beside = ratio(ours, measured[row]) if ours and row.peer.name != reference.name else None
        lines.append(f"| {' | '.join(_cells(row, measured[row], beside, polls=polls))} |")
    return lines


def _cells(row: Row, outcomes: Sequence[Outcome | None], beside: Spread | None, *, polls: bool) -> list[str]:
    cells = [str(row.callers), row.peer.title]
    cells += [_shown(spread(outcomes, name)) for name in ("requests_per_s", "p50_ms", "p99_ms")]
    if polls:
        cells.append(_shown(spread(outcomes, "polls_per_request")))
    errors = sum(outcome.errors for outcome in outcomes if outcome)
    return [*cells, str(errors), _shown(beside)]


def _shown(values: Spread | None) -> str:
    if values is None:
        return ""
    if values.low == values.high:
        return number(values.median)
    return f"{number(values.median)} ({number(values.low)} to {number(values.high)})"


def number(value: float) -> str:
    """Write a number with three digits that count, and no fewer before the point than it has."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}"


def _notes(measured: Measured, reference: Peer, settings: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Rounds: {settings['rounds']} of {settings['seconds']:g} seconds a row; medians, least and greatest in "
        f"brackets. The last column is {reference.title}'s requests/s in those of the row, round by round: above 1, "
        f"{reference.title} is faster. A server is started for every row of every round"
        + (", and the load generator has a core to itself. " if settings["generator_core"] is not None else ". ")
        + "Polls follow each other without a pause. No server writes a log line for a request.",
        "",
    ]
    peers = {row.peer.name: row.peer for row in measured}
    lines += [f"* {peer.title}: {peer.note}" for peer in peers.values() if peer.note]
    errors = {row: next((o.first_error for o in outcomes if o and o.errors), "") for row, outcomes in measured.items()}
    lines += [f"* first error of {row}: `{error}`" for row, error in errors.items() if error]
    busy = [row for row, outcomes in measured.items() if any(o and o.client_cpu > BUSY_CLIENT for o in outcomes)]
    lines += [f"* the load generator's core was full, the server's may not have been: {row}" for row in busy]
    return lines


def _about(machine: Mapping[str, Any]) -> list[str]:
    lines = [f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {machine['system']}."]
    for title, versions in machine["versions"].items():
        lines.append(f"* {title}: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return lines


def about_machine(versions: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Tell what it was measured on and with."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg(),
        "argv": sys.argv[1:],
        "versions": versions,
    }


def cpu_model(cpuinfo: Path) -> str:
    """Return the processor's name as the system gives it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def document(
    measured: Measured, reference: Peer, machine: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all of it for JSON: each row with its rounds, spreads and ratio."""
    rows = []
    for row, outcomes in measured.items():
        ours = measured.get(Row(reference, row.operation, row.callers))
        spreads = {
            "requests_per_s": spread(outcomes, "requests_per_s"),
            "p50_ms": spread(outcomes, "p50_ms"),
            "p99_ms": spread(outcomes, "p99_ms"),
            "ratio": ratio(ours, outcomes) if ours else None,
        }
        rows.append(
            {
                "server": row.peer.name,
                "operation": row.operation,
                "callers": row.callers,
                **{name: values and attrs.asdict(values) for name, values in spreads.items()},
                "rounds": [outcome and _plain(outcome) for outcome in outcomes],
            }
        )
    return {"machine": machine, "settings": settings, "rows": rows}


def _plain(outcome: Outcome) -> dict[str, Any]:
    """JSON has no NaN, which stands for a percentile of nothing."""
    return {name: None if value != value else value for name, value in vars(outcome).items()}
