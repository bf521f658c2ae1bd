"""What the journal keeps over the end of its process, on good and bad days."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ConfigError, ServiceError, Unavailable
from aiservices.journal import (
    Accepted,
    Delivered,
    Ended,
    Event,
    Forgotten,
    JobRecord,
    Journal,
    Requeued,
    Started,
    StoredOutput,
    database,
    read_offline,
    store,
    writer,
)

KEY = base64.b64encode(b"k" * 32).decode()
LARGE = 100_000
ROOT = Path(__file__).parents[2]


def accepted(job_id: str = "a", **values: Any) -> Accepted:
    return Accepted(**{"job_id": job_id, "service": "s", "sequence": 1, "at": 1.0, "request": {"input": 1}, **values})


def ended(job_id: str = "a", **values: Any) -> Ended:
    return Ended(**{"job_id": job_id, "attempt": 1, "status": "COMPLETED", "at": 3.0, "started_at": 2.0, **values})


@contextlib.asynccontextmanager
async def opened(path: Path, **values: Any) -> AsyncIterator[tuple[Journal, list[JobRecord]]]:
    journal = Journal(path, **values)
    records = await journal.open()
    try:
        yield journal, records
    finally:
        await journal.close()


async def offline(path: Path) -> list[JobRecord]:
    return await asyncio.to_thread(read_offline, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs.db"


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_each_state_is_read_back_in_the_order_of_acceptance(path: Path, in_one_batch: bool) -> None:
    output = StoredOutput(fields=b"{}", files=(("f", "a/b", b"z"),))
    events: list[Event] = [
        *(accepted(name, sequence=number) for number, name in enumerate("abcdef")),
        *(Started(job_id=name, attempt=1, at=2.0) for name in "bcdf"),
        *(ended(name, output=output, webhook_due=True) for name in "cdf"),
        Delivered(job_id="d", attempt=1),
        Forgotten(job_id="e"),
        Requeued(job_id="f", attempt=2, at=9.0),
    ]
    async with opened(path) as (journal, records):
        assert records == []
        for event in events:
            position = journal.write(event)
            if not in_one_batch:
                assert await journal.committed(position)
    async with opened(path) as (_, records):
        pass
    assert [(r.job_id, r.state, r.attempt, r.webhook_due, r.queued_at) for r in records] == [
        ("a", "queued", 1, False, 1.0),
        ("b", "running", 1, False, 1.0),
        ("c", "COMPLETED", 1, True, 1.0),
        ("d", "COMPLETED", 1, False, 1.0),
        ("f", "queued", 2, False, 9.0),
    ]
    assert records[2].output == output
    assert records[4].output is None
    assert records == await offline(path)


async def test_what_one_round_of_the_loop_writes_is_one_commit(path: Path) -> None:
    commits: list[float] = []
    async with opened(path, on_commit=lambda seconds, _: commits.append(seconds)) as (journal, _):
        positions = [journal.write(accepted(name)) for name in "abc"] + [journal.write(ended("a"))]
        assert await journal.committed(positions[-1])
        assert len(commits) == 1
    assert [record.state for record in await offline(path)] == ["COMPLETED", "queued", "queued"]


async def test_a_last_event_is_written_by_the_close(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.write(accepted())
    assert [record.job_id for record in await offline(path)] == ["a"]


def test_what_callers_sent_is_not_shown_with_an_event() -> None:
    assert repr(accepted(request={"input": "private"})) == "Accepted(a)"
    assert "private" not in repr(ended(output=StoredOutput(fields=b"private")))


async def test_a_late_delivery_leaves_a_newer_attempt_due(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.write(accepted())
        await journal.committed(journal.write(ended(attempt=2, webhook_due=True)))
        journal.write(Delivered(job_id="a", attempt=1))
    assert (await offline(path))[0].webhook_due


async def test_one_file_holds_equal_payloads_and_goes_with_the_last_name(path: Path) -> None:
    def files() -> list[Path]:
        return [found for found in path.parent.glob("jobs.db.blobs/*/*") if found.is_file()]

    request = {"input": "x" * LARGE}
    async with opened(path) as (journal, _):
        journal.write(accepted("a", request=request))
        await journal.committed(journal.write(accepted("b", request=request)))
        assert len(files()) == 1
        await journal.committed(journal.write(Forgotten(job_id="a")))
        assert len(files()) == 1
    files()[0].with_name("f" * 64).write_bytes(b"left by a crash")
    files()[0].with_name("e.half").write_bytes(b"left by a crash")
    async with opened(path) as (journal, records):
        assert [dict(record.request) for record in records] == [request]
        assert len(files()) == 1
        await journal.committed(journal.write(Forgotten(job_id="b")))
        assert files() == []


async def test_a_missing_payload_is_told_not_lost(path: Path) -> None:
    async with opened(path) as (journal, _):
        journal.write(accepted(request={"input": "x" * LARGE}))
    for found in path.parent.glob("jobs.db.blobs/*/*"):
        found.unlink()
    (record,) = await offline(path)
    assert record.unreadable is not None


async def test_a_full_disk_refuses_acceptances_and_keeps_the_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    refused: list[Any] = []
    async with opened(path, on_refused=lambda *told: refused.append(told)) as (journal, _):
        assert await journal.committed(journal.write(accepted("a")))
        commit = store.Store.commit

        def full(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store.Store, "commit", full)
        journal.write(ended("a"))
        assert not await journal.committed(journal.write(accepted("b")))
        assert refused == [(["b"], "the journal cannot be written: database or disk is full")]
        assert journal.failing is not None
        with pytest.raises(Unavailable, match="disk is full"):
            journal.write(accepted("c"))
        monkeypatch.setattr(store.Store, "commit", commit)
    assert [(record.job_id, record.state) for record in await offline(path)] == [("a", "COMPLETED")]


async def test_a_writer_that_breaks_leaves_nobody_waiting_and_refuses_what_is_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    refused: list[str] = []
    async with opened(path, on_refused=lambda ids, _: refused.extend(ids)) as (journal, _):
        monkeypatch.setattr(writer.Writer, "_commit", broken)
        position = journal.write(accepted())
        assert not await journal.committed(position)
        assert refused == ["a"]
        with pytest.raises(Unavailable, match="the journal stopped working"):
            journal.write(accepted("b"))
        assert not await journal.committed(journal.write(ended("c")))


async def test_a_failed_transaction_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    async with opened(path) as (journal, _):
        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "_transact", full)
            assert not await journal.committed(journal.write(accepted(request={"input": "x" * LARGE})))
            assert [found for found in path.parent.glob("jobs.db.blobs/*/*") if found.is_file()] == []


async def test_a_row_that_sqlite_refuses_leaves_no_transaction_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    async with opened(path) as (journal, _):
        await journal.committed(journal.write(accepted("a")))
        journal.write(ended("a"))
        assert not await journal.committed(journal.write(accepted("b", service="\ud800")))
    assert [(record.job_id, record.state) for record in await offline(path)] == [("a", "COMPLETED")]


async def test_secrets_are_on_the_disk_encrypted_only(path: Path) -> None:
    secret = {"accessSecret": "unmistakable-secret"}
    async with opened(path, secret_key=KEY) as (journal, _):
        await journal.committed(journal.write(accepted(secret=secret)))
        for found in path.parent.rglob("*"):
            assert not found.is_file() or b"unmistakable" not in found.read_bytes()
    async with opened(path, secret_key=KEY) as (_, records):
        assert records[0].secret == secret
    for other in (None, base64.b64encode(b"o" * 32).decode()):
        async with opened(path, secret_key=other) as (_, records):
            assert records[0].secret is None
            assert "AISERVICES_JOURNAL_KEY" in str(records[0].unreadable)


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(b"k" * 31).decode(), "é" * 44])
def test_a_key_of_another_form_is_refused_unseen(path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes as base64"):
        Journal(path, secret_key=key)


async def test_only_its_user_may_read_it(path: Path) -> None:
    async with opened(path) as (journal, _):
        await journal.committed(journal.write(accepted(request={"input": "x" * LARGE})))
        for found in (path.parent, *path.parent.rglob("*")):
            assert found.stat().st_mode & 0o077 == 0, found


async def test_a_second_process_and_a_reader_are_refused(path: Path) -> None:
    async with opened(path):
        with pytest.raises(ServiceError, match="in use"):
            await Journal(path).open()
        with pytest.raises(ServiceError, match="ask that server"):
            await offline(path)


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_named_and_left(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ServiceError, match=r"jobs\.db"):
        asyncio.run(Journal(path).open())
    assert path.read_bytes() == content


async def test_an_older_form_is_migrated_beside_a_copy_and_a_newer_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as (journal, _):
        journal.write(accepted())
    with monkeypatch.context() as patch:
        patch.setattr(database, "VERSION", 2)
        patch.setattr(database, "MIGRATIONS", {1: ("UPDATE jobs SET service = 'moved'",)})
        async with opened(path) as (_, records):
            assert [record.service for record in records] == ["moved"]
    with pytest.raises(ServiceError, match="form 2"):
        await Journal(path).open()
    assert [record.service for record in await offline(path.with_name("jobs.db.v1"))] == ["s"]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from aiservices.journal import Accepted, Journal, blobs, store
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
async def main():
    journal = Journal(Path(sys.argv[1])); await journal.open()
    def accept(name): return journal.write(
        Accepted(job_id=name, service="s", sequence=1, at=1.0, request={"input": name * 100000}))
    assert await journal.committed(accept("a"))
    if sys.argv[2] == "blob": blobs.sync_folder = die
    if sys.argv[2] == "before": store.Store._transact = die
    if sys.argv[2] == "after": store.Blobs.collect = die
    await journal.committed(accept("b")); die()
asyncio.run(main())
"""


@pytest.mark.parametrize(("point", "kept"), [("blob", "a"), ("before", "a"), ("after", "ab"), ("none", "ab")])
async def test_a_kill_keeps_what_was_committed_and_nothing_half(path: Path, point: str, kept: str) -> None:
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(path), point, cwd=ROOT)
    assert await killed.wait() == -signal.SIGKILL
    async with opened(path) as (_, records):
        assert [(record.job_id, record.unreadable) for record in records] == [(name, None) for name in kept]
        assert len([found for found in path.parent.glob("jobs.db.blobs/*/*") if found.is_file()]) == len(kept)


FULL = """
import asyncio, resource, sys
from pathlib import Path
from aiservices.journal import Accepted, Ended, Journal, StoredOutput, writer
writer.RETRY_S = 0.01
async def main():
    refused = []
    journal = Journal(Path(sys.argv[1]), on_refused=lambda ids, reason: refused.extend(ids))
    await journal.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    kept = []
    while not refused:
        name = str(len(kept))
        request = {"input": "x" * 50_000}
        if await journal.committed(journal.write(
            Accepted(job_id=name, service="s", sequence=1, at=1.0, request=request))):
            kept.append(name)
    assert refused == [str(len(kept))] and len(kept) > 1 and journal.failing
    output = StoredOutput(fields=b"y" * 60_000)
    end = journal.write(Ended(job_id="0", attempt=1, status="COMPLETED", at=3.0, output=output))
    while journal.failing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await asyncio.sleep(0.01)
    assert await journal.committed(end)
    print(len(kept))
    await journal.close()
asyncio.run(main())
"""


async def test_a_file_that_may_not_grow_refuses_and_recovers(path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FULL, str(path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await child.communicate()
    assert child.returncode == 0
    records = await offline(path)
    assert [record.job_id for record in records] == [str(number) for number in range(int(told.split()[-1]))]
    assert [record.state for record in records] == ["COMPLETED"] + ["queued"] * (len(records) - 1)
