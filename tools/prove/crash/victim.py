"""``python -m tools.prove.crash.victim``: the unchanged program, killed at a named point, or with a deliberate fault.

``PROVE_KILL=POINT:COUNT`` kills the process when it passes a point for that time; ``PROVE_FAULT=NAME`` breaks it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

from aiservices.cli import main
from aiservices.journal import blobs, database
from aiservices.journal.blobs import Blobs
from aiservices.journal.store import Store
from aiservices.journal.writer import Writer
from tools.prove.crash.faults import FAULTS

LINGER_S = 0.02
"""Between a point and the kill: what other threads send meanwhile is what a caller may have been told."""

METHODS: dict[str, tuple[type, str]] = {
    "store": (Store, "commit"),
    "transaction": (Store, "_transact"),
    "answer": (Writer, "_post"),
    "payload": (Blobs, "_write"),
    "collect": (Blobs, "collect"),
    "sweep": (Blobs, "sweep"),
    "read": (Store, "read"),
    "tidy": (Store, "tidy"),
    "close": (Store, "close"),
}
STATEMENTS = {
    "begin": "BEGIN IMMEDIATE",
    "insert": "INSERT",
    "update": "UPDATE",
    "delete": "DELETE",
    "commit": "COMMIT",
}
POINTS = (
    *(f"{when}-{name}" for name in (*METHODS, *STATEMENTS) for when in ("before", "after")),
    "before-fsync",
    "after-fsync",
)
"""Where the process can be killed; each before or after what it is called by."""


class Killer:
    """Kills this process at one of the points.

    Args:
        point: its name.
        count: after how many passes.
    """

    def __init__(self, point: str, count: int) -> None:
        self._point, self._left = point, count

    def passes(self, point: str) -> None:
        """Count, and kill when the time has come."""
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                time.sleep(LINGER_S)
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that passes the points before and after the call."""

        @wraps(call)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.passes(f"before-{name}")
            result = call(*arguments, **named)
            self.passes(f"after-{name}")
            return result

        return wrapped


def install(killer: Killer) -> None:
    """Put the points into the journal's classes, into SQLite's connections and around fsync."""
    for name, (cls, method) in METHODS.items():
        setattr(cls, method, killer.around(name, getattr(cls, method)))

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            return self._run(sql, super().execute, sql, *parameters)

        def executemany(self, sql: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
            return self._run(sql, super().executemany, sql, rows)

        def _run(self, sql: str, call: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
            name = next((name for name, begin in STATEMENTS.items() if sql.startswith(begin)), "other")
            return killer.around(name, call)(*arguments)  # type: ignore[no-any-return]

    connect = partial(sqlite3.connect, factory=Connection)
    vars(database)["sqlite3"] = SimpleNamespace(**{**vars(sqlite3), "connect": connect})
    vars(blobs)["os"] = SimpleNamespace(**{**vars(os), "fsync": killer.around("fsync", os.fsync)})


if __name__ == "__main__":
    if fault := os.environ.get("PROVE_FAULT"):
        FAULTS[fault].install()
    if kill := os.environ.get("PROVE_KILL"):
        point, _, count = kill.partition(":")
        install(Killer(point, int(count)))
    raise SystemExit(main(sys.argv[1:]))
