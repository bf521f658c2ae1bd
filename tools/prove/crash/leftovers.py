"""What a stopped server's journal may not hold."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from tools.prove.crash.callers import KEEP_S

SLACK_S = 20.0
"""Between the end of a job's retention and its row's, for a busy machine."""


def leftovers(folder: Path) -> list[str]:
    """Return what a stopped server left that it should not have: unnamed or missing payloads, a damaged file."""
    with sqlite3.connect(folder / "jobs.db") as connection:
        damage = connection.execute("PRAGMA integrity_check").fetchone()[0]
        rows = connection.execute("SELECT request, output FROM jobs").fetchall()
        old = ("brief", time.time() - KEEP_S["brief"] - SLACK_S)
        late = connection.execute("SELECT count(*) FROM jobs WHERE service = ? AND ended_at < ?", old).fetchone()[0]
    connection.close()
    found = [] if damage == "ok" else [f"the journal is damaged: {damage}"]
    found += [f"{late} rows of jobs that are forgotten"] if late else []
    named = " ".join(repr(value) for row in rows for value in row)
    return found + [
        f"a file that no row names: {path.name}" for path in folder.glob("jobs.db.blobs/*/*") if path.name not in named
    ]
