"""Has schemathesis hold the server to its own OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import attrs

REQUEST_TIMEOUT_S = 30
"""A machine with more to do than cores takes its time."""


@attrs.frozen
class Outcome:
    """What schemathesis did and found."""

    cases: int
    operations: int
    failures: list[str]


async def hold_to_document(url: str, folder: Path, *, seed: int, examples: int, seconds: int | None) -> Outcome:
    """Run all of its checks on ``/openapi.json``.

    Args:
        url: of the server.
        folder: for its report.
        seed: of what it makes up.
        examples: most requests of each operation and phase.
        seconds: how long it goes on making up more; None: once through.
    """
    report = folder / "report.json"
    arguments = [
        *("run", f"{url}/openapi.json", "--checks", "all", "--continue-on-failure", "--seed", str(seed)),
        *("--max-examples", str(examples), "--request-timeout", str(REQUEST_TIMEOUT_S), "--no-color"),
        *("--report", "json", "--report-json-path", str(report)),
        *(("--max-time", str(seconds)) if seconds else ()),
    ]
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("st")), *arguments),
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tools.prove.api.hooks", "PYTHONPATH": str(Path.cwd())},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    if not report.exists():
        return Outcome(0, 0, [f"schemathesis did not run: {printed.decode(errors='replace')[-2000:]}"])
    found = json.loads(report.read_bytes())
    failures = [f"{each['title']}: {', '.join(each['operations'])}" for each in found["failures"] + found["errors"]]
    if process.returncode and not failures:
        failures.append(f"schemathesis ended with status {process.returncode}")
    if failures:
        failures.append(printed.decode(errors="replace")[-8000:])
    return Outcome(found["test_cases"]["generated"], found["operations"]["tested"], failures)
