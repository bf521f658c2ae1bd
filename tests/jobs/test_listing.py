"""The jobs that are known, by age: what a page has, and what it costs."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiservices.callers import ANYONE, NOBODY, Caller
from aiservices.errors import InvalidInput, JobNotFound
from aiservices.jobs import EndReason, Job, JobRequest, JobStatus, Page, Wanted, listing, read_statuses
from aiservices.service import Service
from tests.fakes import Gated, make_service
from tests.jobs.test_restart import gated, process
from tests.running import ask, ended

SHOP, RIVAL = (Caller(tenant=name, key="key") for name in ("shop", "rival"))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """One that takes jobs and never runs them."""
    service = make_service(Gated())
    yield service
    await service.close()


def asked(service: Service, *callers: Caller) -> list[Job]:
    """Jobs of these callers, accepted in this order."""
    return [service._jobs.submit(JobRequest(input={"text": "a"}, caller=caller), {}) for caller in callers]


def walk(service: Service, caller: Caller, limit: int, statuses: frozenset[JobStatus] = frozenset()) -> list[Page]:
    pages = [service.page(caller, Wanted(limit=limit, statuses=statuses))]
    while pages[-1].next is not None:
        pages.append(service.page(caller, Wanted(limit=limit, statuses=statuses, before=pages[-1].next)))
    return pages


async def test_pages_have_every_job_once_and_the_newest_first(service: Service) -> None:
    jobs = asked(service, *[ANYONE] * 7)
    pages = walk(service, ANYONE, 3)
    assert [len(page.jobs) for page in pages] == [3, 3, 1]
    assert [job for page in pages for job in page.jobs] == jobs[::-1]
    assert [len(page.jobs) for page in walk(service, ANYONE, 7)] == [7]
    assert walk(make_service(Gated()), ANYONE, 3) == [Page([], None)]


async def test_a_tenant_sees_its_own_and_an_operator_all(service: Service) -> None:
    first, theirs, second = asked(service, SHOP, RIVAL, SHOP)
    assert walk(service, SHOP, 5) == [Page([second, first], None)]
    assert walk(service, RIVAL, 5) == [Page([theirs], None)]
    assert walk(service, ANYONE, 5) == [Page([second, theirs, first], None)]
    assert walk(service, NOBODY, 5) == [Page([], None)]


async def test_no_page_begins_at_a_job_that_the_caller_may_not_see(service: Service) -> None:
    theirs, *_ = asked(service, RIVAL, SHOP)
    for before in (theirs.id, "nothing"):
        with pytest.raises(JobNotFound):
            service.page(SHOP, Wanted(before=before))


async def test_a_page_looks_at_few_jobs_however_many_there_are(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_LOOKS", 4)
    jobs = asked(service, *[ANYONE] * 10)
    service.give_up(jobs[0])
    pages = walk(service, ANYONE, 3, frozenset({JobStatus.CANCELLED}))
    assert [page.next for page in pages] == [jobs[6].id, jobs[2].id, None]
    assert [job for page in pages for job in page.jobs] == [jobs[0]]


async def test_what_is_forgotten_is_on_no_page_and_leaves_nothing(service: Service) -> None:
    jobs = asked(service, *random.choices([SHOP, RIVAL, ANYONE], k=50))
    known = service._jobs._known
    for job in random.sample(jobs, k=50):
        service.give_up(job)
        service._jobs._retention.take_back(job)
        service._jobs._forget(job)
        assert job not in service.page(ANYONE, Wanted()).jobs
    assert not any(vars(known).values())


async def test_a_retried_job_keeps_its_place_and_its_time(service: Service) -> None:
    jobs = asked(service, ANYONE, ANYONE)
    created_at = jobs[0].created_at
    service._jobs.fail_all(EndReason.FAILED, "no")
    service._jobs.retry(jobs[0].id)
    assert service.page(ANYONE, Wanted()).jobs == jobs[::-1]
    assert jobs[0].created_at == created_at


async def test_jobs_of_an_earlier_process_stand_where_they_stood(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with process(path, crash=True, max_batch_size=1) as first:
        service = first.get("fake")
        jobs = [ask(service, f"{number}") for number in range(5)]
        for number in (3, 0, 4):
            service.give_up(jobs[number])
        before = [(job.id, job.created_at) for job in service.page(ANYONE, Wanted()).jobs]
    async with process(path, max_batch_size=1) as second:
        service = second.get("fake")
        gated(second).gate.set()
        assert [(job.id, job.created_at) for job in service.page(ANYONE, Wanted()).jobs] == before
        newest = ask(service, "new")
        assert service.page(ANYONE, Wanted(limit=1)).jobs == [newest]
        await ended(service, newest)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("DONE", "status: unknown status 'DONE'; there are: IN_QUEUE, IN_PROGRESS, "),
        ("FAILED,CANCELED", "status: unknown status 'CANCELED'; did you mean 'CANCELLED'?"),
        ("", "status: unknown status ''"),
    ],
)
def test_a_word_that_is_no_status_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_statuses(text)
    assert str(refused.value).startswith(complaint)


def test_statuses_are_the_words_of_the_wire() -> None:
    assert read_statuses("FAILED, TIMED_OUT") == {JobStatus.FAILED, JobStatus.TIMED_OUT}
