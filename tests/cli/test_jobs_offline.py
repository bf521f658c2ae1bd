"""``jobs`` on the file of a server that has ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aiservices.cli import Exit
from aiservices.jobs import JobRequest
from tests.cli.conftest import Cli
from tests.cli.test_jobs import UNKNOWN
from tests.fakes import Gated
from tests.jobs.test_restart import process
from tests.running import LIMIT_S, until


@pytest.fixture
async def journal(tmp_path: Path) -> tuple[Path, list[str]]:
    """The file of a server that was killed: one job is done, one ran, one waited."""
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, max_batch_size=1) as registry:
        service = registry.get("fake")
        handler = service.handler
        assert isinstance(handler, Gated)
        jobs = [service.submit(JobRequest(input={"text": text})) for text in ("a", "b")]
        handler.gate.set()
        for job in jobs:
            await job.wait_end(LIMIT_S)
        handler.gate.clear()
        handler.entered.clear()
        jobs += [service.submit(JobRequest(input={"text": text})) for text in ("c", "d")]
        assert await asyncio.to_thread(handler.entered.wait, LIMIT_S)
        await until(lambda: jobs[2].started_at is not None)
    return path, [job.id for job in jobs]


async def test_the_jobs_of_a_journal_are_listed_and_shown_without_a_server(
    cli: Cli, journal: tuple[Path, list[str]]
) -> None:
    path, known = journal

    def look(*words: str) -> tuple[int, str, str]:
        Path("services.toml").unlink(missing_ok=True)  # none is needed
        return cli("jobs", *words, "--journal", str(path))

    code, out, _ = await asyncio.to_thread(look, "list")
    assert code == Exit.OK
    assert [tuple(line.split()[:3]) for line in out.splitlines()[1:]] == [
        (known[3], "fake", "IN_QUEUE"),
        (known[2], "fake", "IN_PROGRESS"),
        (known[1], "fake", "COMPLETED"),
        (known[0], "fake", "COMPLETED"),
    ]
    _, out, _ = await asyncio.to_thread(look, "list", "--status", "COMPLETED", "--limit", "1", "--json")
    found = json.loads(out)
    assert ([job["id"] for job in found["jobs"]], found["more"]) == ([known[1]], True)
    _, out, _ = await asyncio.to_thread(look, "show", known[0], "--json")
    shown = json.loads(out)
    assert (shown["status"], shown["output"], shown["service"]) == ("COMPLETED", {"text": "A"}, "fake")
    assert {type(shown[key]) for key in ("delayTime", "executionTime")} == {int}
    assert await asyncio.to_thread(look, "show", UNKNOWN) == (
        Exit.FAILED,
        "",
        f"aiservices: no job {UNKNOWN} in {path} ('aiservices jobs list --journal' shows those there are)\n",
    )
    for action in ("cancel", "retry"):
        code, _, err = await asyncio.to_thread(look, action, known[3])
        assert (code, "a server has to do that" in err) == (Exit.USAGE, True)
    code, _, err = await asyncio.to_thread(look, "list", "--service", "fak")
    assert (code, err) == (Exit.USAGE, "aiservices: no service named 'fak'; there are: fake\n")


async def test_a_journal_that_a_server_uses_is_left_to_it(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path):
        code, _, err = await asyncio.to_thread(cli, "jobs", "list", "--journal", str(path))
    assert (code, "in use by another process: ask that server instead" in err) == (Exit.FAILED, True)


def test_a_journal_that_is_not_there_is_told(cli: Cli) -> None:
    assert cli("jobs", "list", "--journal", "none.db") == (
        Exit.FAILED,
        "",
        "aiservices: there is no journal none.db\n",
    )
