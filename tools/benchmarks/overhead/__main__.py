"""Measure what a job costs beside its work, here and with what one would take instead: ``scripts/bench overhead``.

Each server gives back a line of text and does nothing else. It is started for every row on a free port of loopback, is
warmed up for a second, and answers a load generator in a process of its own, which has a core to itself where there are
two. Peers are installed once, each into an environment of its own under .bench/; remove that folder to be rid of them.
Prints Markdown; progress goes to stderr. Nothing fails because of a number.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.overhead.environments import FOLDER, SetupError, environment, interpreter, versions
from tools.benchmarks.overhead.measure import Bench, estimate_s, measure_all, rows_of, say, take_cores
from tools.benchmarks.overhead.peers import JOURNAL, OPERATIONS, OURS, PEERS, Peer, ours
from tools.benchmarks.overhead.report import about_machine, document, markdown

LEAST_S = 0.1
"""Shortest measurement: a few hundred requests."""


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    reader = argparse.ArgumentParser(
        prog="scripts/bench overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, operations = [peer.name for peer in PEERS], list(OPERATIONS)
    add = reader.add_argument
    add("--rounds", type=_count, default=5, metavar="N", help="how often each row is measured; default: 5")
    add("--seconds", type=_seconds, default=4.0, metavar="S", help="how long; default: 4")
    add("--only", type=_words(names), default=names, metavar="PEER,...", help=f"beside ours; of {', '.join(names)}")
    add("--operations", type=_words(operations), default=operations, metavar="NAME,...", help=", ".join(operations))
    add("--callers", type=_counts, default=[1, 32], metavar="N,...", help="requests under way; default: 1,32")
    add("--ours", type=Path, default=[], action="append", metavar="CHECKOUT", help="measure another checkout's server "
        "too, with this interpreter; may be given again")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every round's figures there as well")
    return reader


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not LEAST_S <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {LEAST_S} on")
    return value


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are: {', '.join(known)}")
        return [word for word in known if word in words]

    return read


def _counts(text: str) -> list[int]:
    return sorted({_count(word) for word in text.split(",")})


def chosen(options: argparse.Namespace) -> list[Peer]:
    """Return who is measured: ours without and with a journal, other checkouts of it, and the peers that were named.

    Raises:
        SetupError: Two checkouts bear one name.
    """
    others = [ours(path.resolve().name, f"aiservices ({path.resolve().name})", path.resolve()) for path in options.ours]
    peers = [OURS, JOURNAL, *others, *(peer for peer in PEERS if peer.name in options.only)]
    names = [peer.name for peer in peers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SetupError(f"two servers would be called {twice}: rename the checkout's folder")
    return peers


def interpreters(peers: Sequence[Peer]) -> dict[str, Path]:
    """Return the interpreter of each peer; a peer that cannot be installed is left out, and said so.

    Raises:
        SetupError: A checkout cannot be served.
    """
    found = {}
    for peer in peers:
        try:
            found[peer.name] = interpreter(peer)
        except SetupError as error:
            if peer.checkout is not None:
                raise
            say(f"{peer.title} is left out, it could not be installed: {error}")
    return found


def generator() -> Path:
    """Return the interpreter of the load generator."""
    try:
        return environment("client")
    except SetupError as error:
        say(f"the load generator does without uvloop: {error}")
        return Path(sys.executable)


def run(options: argparse.Namespace) -> None:
    """Measure, and print what came of it.

    Raises:
        SetupError: A checkout cannot be served, or ours did not come up.
    """
    peers = chosen(options)
    rows = rows_of(peers, options.operations, options.callers)
    minutes = estimate_s(rows, options.rounds, options.seconds) / 60
    say(f"{len(rows)} rows, {options.rounds} rounds: about {minutes:.0f} minutes, and what is to be installed first")
    pythons = interpreters(peers)
    rows = [row for row in rows if row.peer.name in pythons]
    made_of = {peer.title: versions(peer, pythons[peer.name]) for peer in peers if peer.name in pythons}
    bench = Bench(generator(), take_cores(), pythons, FOLDER / "run", options.seconds)
    settings: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds, "generator_core": bench.core}
    machine = about_machine(made_of)
    measured = measure_all(rows, options.rounds, bench.measure)
    if not any(row.peer.name == OURS.name for row in measured):
        raise SetupError(f"our own server did not come up; its log is in {bench.folder}")
    print(markdown(measured, OURS, machine, settings))
    if options.json:
        options.json.write_text(json.dumps(document(measured, OURS, machine, settings), indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parser().parse_args(arguments)
    # So that the servers are ended when this process is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(options)
    except SetupError as error:
        say(f"bench overhead: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench overhead: interrupted; every server has been ended")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
