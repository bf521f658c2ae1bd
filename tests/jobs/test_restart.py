"""Jobs over the end of the process: what was accepted goes on, whatever way the last process ended."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from aiservices.callers import ANYONE, Caller
from aiservices.errors import Conflict, JobNotFound, Unavailable
from aiservices.jobs import Destination, EndReason, JobRequest, announcer, fingerprint
from aiservices.journal import JobRecord, Journal, read_offline
from aiservices.journal.store import Store
from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.trace import Trace
from aiservices.webhooks import Poster
from tests.fakes import Gated, Upper
from tests.running import LIMIT_S, ask, ended, output, until
from tests.test_spans import CALLERS, provide

KEY = base64.b64encode(bytes(32)).decode()
FULL = "no space left on the disk"


@asynccontextmanager
async def process(
    path: Path,
    *,
    crash: bool = False,
    handler: str = "Gated",
    key: str | None = None,
    poster: Poster | None = None,
    **settings: Any,
) -> AsyncIterator[Registry]:
    """One process' life on the journal's file; one that crashes tells the journal nothing of its end."""
    service = ServiceConfig(name="fake", handler=f"tests.fakes:{handler}", device="cpu", **settings)
    config = Config(server=ServerConfig(grace_s=0.0), profile="test", services={"fake": service})
    journal = Journal(path, secret_key=key)
    registry = Registry(config, journal=journal)
    if poster is not None:
        registry._webhooks._poster = poster
    await registry.start()
    try:
        yield registry
        if crash:
            await registry.get("fake").wait_recorded()
            journal.write = lambda event: 0  # type: ignore[method-assign]  # from here on nothing reaches the file
    finally:
        made = registry.get("fake").handler
        if isinstance(made, Gated):
            made.gate.set()
        await registry.close()


async def stored(path: Path) -> list[JobRecord]:
    """What lies in the file that no process holds."""
    return await asyncio.to_thread(read_offline, path)


def gated(registry: Registry) -> Gated:
    handler = registry.get("fake").handler
    assert isinstance(handler, Gated)
    return handler


async def test_after_a_crash_what_waited_and_what_ran_is_done_in_order(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, max_batch_size=1) as first:
        service = first.get("fake")
        jobs = [ask(service, text) for text in ("a", "b", "c")]
        await jobs[-1].wait_recorded()
        await until(gated(first).entered.is_set)
    async with process(path, max_batch_size=1) as second:
        service = second.get("fake")
        gated(second).gate.set()
        revived = [service.get(job.id, ANYONE) for job in jobs]
        for job in revived:
            await job.wait_end(LIMIT_S)
        assert [output(job) for job in revived] == [{"text": "A"}, {"text": "B"}, {"text": "C"}]
        assert [job.attempt for job in revived] == [2, 1, 1]
        assert gated(second).batches == [["a"], ["b"], ["c"]]


async def test_a_job_that_may_have_killed_a_process_is_known_to_be_begun_before_the_model_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True) as first:
        job = ask(first.get("fake"), "a")
        await until(gated(first).entered.is_set)
    begun, too_early, commit = threading.Event(), [], Store.commit

    def predict(self: Gated, tasks: Sequence[Any]) -> Any:
        begun.set()
        return Upper.predict(self, tasks)

    def slow_commit(self: Store, changes: Mapping[str, Any]) -> None:
        too_early.append(begun.wait(0.2))  # by then a model that nothing holds back has the job
        commit(self, changes)

    monkeypatch.setattr(Gated, "predict", predict)
    monkeypatch.setattr(Store, "commit", slow_commit)
    async with process(path) as second:
        revived = second.get("fake").get(job.id, ANYONE)
        await revived.wait_end(LIMIT_S)
        assert (output(revived), too_early[0]) == ({"text": "A"}, False)


async def test_a_result_can_be_asked_for_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, handler="Upper") as first:
        job = ask(first.get("fake"), "a")
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
        shown = job.status_object()
    async with process(path, handler="Upper") as second:
        revived = second.get("fake").get(job.id, ANYONE)
        assert output(revived) == {"text": "A"}
        again = {**revived.status_object(), "workerId": shown["workerId"]}
        for time_ms in ("delayTime", "executionTime"):  # from two clocks, one read after the other
            assert again.pop(time_ms) == pytest.approx(shown.pop(time_ms), abs=500)
        assert again == shown
        assert second.get("fake").health()["jobs"]["completed"] == 0


async def test_the_times_of_an_ended_job_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True) as first:
        job = ask(first.get("fake"), "a")
        gated(first).gate.set()
        await job.wait_end(LIMIT_S)
    with closing(sqlite3.connect(path)) as file, file:  # as if the clock was set back between the three
        file.execute("UPDATE jobs SET started_at = queued_at - 5, ended_at = queued_at - 9")
    async with process(path) as second:
        revived = second.get("fake").get(job.id, ANYONE)
        assert (revived.delay_s, revived.execution_s) == (0.0, 0.0)


async def test_a_job_is_still_its_tenants_after_a_crash(tmp_path: Path) -> None:
    path, shop, rival = tmp_path / "jobs.db", Caller(tenant="shop", key="backend"), Caller(tenant="rival")
    async with process(path, crash=True, handler="Upper") as first:
        job = first.get("fake").submit(JobRequest(input={"text": "a"}, caller=shop))
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
    async with process(path, handler="Upper") as second:
        assert second.get("fake").get(job.id, shop).request.caller.key == "backend"
        with pytest.raises(JobNotFound):
            second.get("fake").get(job.id, rival)


async def test_a_result_is_forgotten_when_its_time_passed_while_no_process_ran(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, handler="Upper") as first:
        job = ask(first.get("fake"), "a")
        await job.wait_end(LIMIT_S)
    async with process(path, handler="Upper", keep_results_s=1e-9) as second:
        await until(lambda: second.get("fake")._jobs._retention.size_bytes == 0)
        with pytest.raises(JobNotFound):
            second.get("fake").get(job.id, ANYONE)
    assert await stored(path) == []


async def test_a_job_whose_time_to_live_passed_meanwhile_ends_as_timed_out(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, max_batch_size=1) as first:
        ask(first.get("fake"), "a")
        await until(gated(first).entered.is_set)
        waiting = ask(first.get("fake"), "b", ttl_s=0.05)
        await waiting.wait_recorded()
    await asyncio.sleep(0.05)
    async with process(path, max_batch_size=1) as second:
        revived = second.get("fake").get(waiting.id, ANYONE)
        await revived.wait_end(LIMIT_S)
        assert revived.status == "TIMED_OUT"


async def test_a_job_that_ends_the_process_each_time_fails_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, max_attempts=2) as first:
        poison = ask(first.get("fake"), "poison")
        await until(gated(first).entered.is_set)
    async with process(path, crash=True, max_attempts=2) as second:
        await until(gated(second).entered.is_set)
    async with process(path, max_attempts=2) as third:
        job = third.get("fake").get(poison.id, ANYONE)
        assert (job.status, job.attempt) == ("FAILED", 2)
        assert job.error == "the process ended while it ran, at attempt 2 of at most 2"
        assert job.reason is EndReason.NOT_RESTORED
        assert third.get("fake").retry(job.id, ANYONE) is job


async def test_when_told_to_stop_what_waits_and_what_runs_is_left_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, max_batch_size=1) as first:
        jobs = [ask(first.get("fake"), text) for text in ("a", "b")]
        await until(gated(first).entered.is_set)
        waiter = asyncio.create_task(jobs[1].wait_end(LIMIT_S))
        await first.drain(0.0)
        await waiter
        assert [job.status for job in jobs] == ["IN_QUEUE", "IN_QUEUE"]
    assert [(record.state, record.attempt) for record in await stored(path)] == [("queued", 1), ("queued", 1)]
    async with process(path) as second:
        gated(second).gate.set()
        revived = [second.get("fake").get(job.id, ANYONE) for job in jobs]
        for job in revived:
            await job.wait_end(LIMIT_S)
        assert [output(job)["text"] for job in revived] == ["A", "B"]


async def test_an_idempotency_key_is_known_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    given = {"text": "a"}

    def request() -> JobRequest:
        return JobRequest(input=given, idempotency_key="key", fingerprint=fingerprint(given))

    async with process(path, crash=True, handler="Upper") as first:
        job = first.get("fake").submit(request())
        await job.wait_recorded()
    async with process(path, handler="Upper") as second:
        assert second.get("fake").submit(request()).id == job.id


async def test_a_job_with_keys_of_its_caller_stays_in_memory_without_a_key_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    secret = Destination(
        access_id="id", access_secret="very-secret", bucket_name="bucket", endpoint_url="https://s3.example.org"
    )
    async with process(path, crash=True) as first:
        job = first.get("fake").submit(JobRequest(input={"text": "a"}, destination=secret))
        await job.wait_recorded()
        assert job.memory_only
    assert await stored(path) == []
    assert b"very-secret" not in await asyncio.to_thread(path.read_bytes)


async def test_an_input_that_does_not_fit_any_more_fails_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True) as first:
        job = ask(first.get("fake"), "a")
        await job.wait_recorded()
    async with process(path, handler="PickyUpper") as second:
        revived = second.get("fake").get(job.id, ANYONE)
        assert (revived.status, revived.error) == (
            "FAILED",
            "after a new start its input does not fit: $.text: too short by now",
        )


async def test_jobs_of_a_service_that_does_not_run_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True) as first:
        job = ask(first.get("fake"), "a")
        await job.wait_recorded()
    other = ServiceConfig(name="other", handler="tests.fakes:Upper", device="cpu")
    registry = Registry(Config(profile="test", services={"other": other}), journal=Journal(path))
    await registry.start()
    await registry.close()
    assert [record.job_id for record in await stored(path)] == [job.id]


async def test_a_job_that_cannot_be_recorded_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with process(tmp_path / "jobs.db") as registry:
        service = registry.get("fake")
        _fill_disk(monkeypatch)
        job = ask(service, "a")
        with pytest.raises(Unavailable, match=FULL):
            await job.wait_recorded()
        assert job.reason is EndReason.NOT_RECORDED
        assert b"\naiservices_journal_failing 1.0\n" in registry.metrics.render()[0]
        with pytest.raises(JobNotFound):
            service.get(job.id, ANYONE)
        with pytest.raises(Unavailable, match=FULL):
            ask(service, "b")
        assert not service.busy


async def test_a_disk_that_fills_while_a_job_runs_keeps_no_result_from_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(tmp_path / "jobs.db") as registry:
        job = ask(registry.get("fake"), "a")
        await job.wait_recorded()
        await until(gated(registry).entered.is_set)
        _fill_disk(monkeypatch)
        gated(registry).gate.set()
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
        assert output(job) == {"text": "A"}


def _fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(*arguments: Any) -> None:
        raise OSError(28, FULL)

    monkeypatch.setattr("aiservices.journal.store.Store.commit", commit)


async def test_a_job_of_which_a_part_is_lost_fails_and_is_not_run_without_it(tmp_path: Path) -> None:
    path, secret = (
        tmp_path / "jobs.db",
        Destination(
            access_id="id", access_secret="very-secret", bucket_name="bucket", endpoint_url="https://s3.example.org"
        ),
    )
    async with process(path, crash=True, key=KEY) as first:
        job = first.get("fake").submit(JobRequest(input={"text": "a"}, destination=secret))
        await job.wait_recorded()
    async with process(path) as second:
        revived = second.get("fake").get(job.id, ANYONE)
        assert revived.status == "FAILED"
        assert "AISERVICES_JOURNAL_KEY" in (revived.error or "")
        with pytest.raises(Conflict, match="could not be read back"):
            second.get("fake").retry(job.id, ANYONE)


class Posts:
    """Takes what the webhooks send; nothing goes out."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, str]] = []

    def check_url(self, url: str, *, field: str) -> None:
        """Every URL will do."""

    async def post_json(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float) -> int:
        self.seen.append(headers)
        return 200


async def test_a_webhook_without_room_goes_out_once_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "LOOK_FOR_ROOM_S", 0.001)
    posts, url = Posts(), "https://hooks.example.org/"
    async with process(tmp_path / "jobs.db", handler="Upper", poster=posts) as registry:
        share = registry._webhooks._per_host
        share.limit, limit = 0, share.limit
        job = ask(registry.get("fake"), "a", webhook=url)
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
        await until(lambda: len(registry.get("fake")._jobs.timers) > 0)
        assert posts.seen == []
        share.limit = limit
        await until(lambda: bool(posts.seen))
        assert posts.seen[0]["webhook-id"] == f"msg_{job.id}_1"


async def test_a_webhook_without_room_is_given_up_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "LOOK_FOR_ROOM_S", 0.001)
    posts = Posts()
    async with process(tmp_path / "jobs.db", handler="Upper", poster=posts, keep_results=1) as registry:
        share = registry._webhooks._per_host
        share.limit, limit = 0, share.limit
        first, second = (ask(registry.get("fake"), text, webhook="https://hooks.example.org/") for text in "ab")
        await ended(registry.get("fake"), first, second)
        await registry.get("fake").wait_recorded()
        assert first.forgotten
        share.limit = limit
        await until(lambda: bool(posts.seen))
        assert [headers["webhook-id"] for headers in posts.seen] == [f"msg_{second.id}_1"]


async def test_a_webhook_that_never_had_room_goes_out_at_the_next_start_with_its_id_and_trace(tmp_path: Path) -> None:
    path, url = tmp_path / "jobs.db", "https://hooks.example.org/"
    trace = Trace("4bf92f3577b34da6a3ce929d0e0e4736", span_id="00f067aa0ba902b7")
    async with process(path, crash=True, handler="Upper") as first:
        first._webhooks._per_tenant.limit = 0
        request = JobRequest(input={"text": "a"}, webhook=url, trace=trace, caller=Caller(tenant="shop", key="backend"))
        job = first.get("fake").submit(request)
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
    assert [record.webhook_due for record in await stored(path)] == [True]
    posts = Posts()
    async with process(path, handler="Upper", poster=posts):
        await until(lambda: bool(posts.seen))
    headers = posts.seen[0]
    assert headers["webhook-id"] == f"msg_{job.id}_1"
    assert headers["traceparent"].split("-")[1] == trace.trace_id
    assert [record.webhook_due for record in await stored(path)] == [False]


async def test_the_webhook_of_an_earlier_process_goes_below_the_callers_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, exporter = tmp_path / "jobs.db", provide(monkeypatch)
    async with process(path, crash=True, handler="Upper") as first:
        first._webhooks._per_tenant.limit = 0
        request = JobRequest(
            input={"text": "a"}, webhook="https://hooks.example.org/", trace=CALLERS, caller=Caller(tenant="shop")
        )
        job = first.get("fake").submit(request)
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
    exporter.clear()
    async with process(path, handler="Upper", poster=Posts()):
        await until(lambda: bool(exporter.get_finished_spans()))
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert (span.name, f"{span.parent.span_id:016x}") == ("webhook", CALLERS.span_id)


async def test_what_is_left_to_the_next_process_shows_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = provide(monkeypatch)
    async with process(tmp_path / "jobs.db") as registry:
        service = registry.get("fake")
        ask(service, "a")
        await until(gated(registry).entered.is_set)
        await service.drain(0.0)
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["waiting", "model", "job"]
    assert (exporter.get_finished_spans()[-1].attributes or {})["aiservices.job.status"] == "IN_QUEUE"


async def test_commits_are_measured(tmp_path: Path) -> None:
    async with process(tmp_path / "jobs.db", handler="Upper") as registry:
        job = ask(registry.get("fake"), "a")
        await job.wait_end(LIMIT_S)
        await job.wait_recorded()
        shown = registry.metrics.render()[0].decode()
    assert 'aiservices_journal_commit_seconds_bucket{le="+Inf"}' in shown
    assert float(shown.split("\naiservices_journal_bytes ")[1].split()[0]) > 0
