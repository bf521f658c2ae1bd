from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from aiservices.callers import ANYONE, Caller
from aiservices.jobs import Job, JobRequest, Stage
from aiservices.jobs.queue import PREPARING_PER_PLACE, JobQueue
from aiservices.jobs.stream import StreamBuffer

NUMBERS = itertools.count(1)


def job(key: str, *, low: bool = False) -> Job:
    caller = Caller(tenant=key, key=key) if key else ANYONE
    number = next(NUMBERS)
    request = JobRequest(input={}, input_bytes=1, caller=caller, low_priority=low)
    stream = StreamBuffer(1)
    return Job(id=str(number), jobs=cast(Any, None), request=request, stream=stream, sequence=number, submitted_at=0.0)


def anyone(_: Caller) -> bool:
    return True


def taken(queue: JobQueue) -> Iterator[Job]:
    """Every job, as a model that works on one at a time takes them."""
    while (best := queue.first_queued(anyone)) is not None:
        assert queue.place_of(best) == 0
        queue.take(best)
        yield best


def test_jobs_of_one_key_go_in_the_order_of_submission() -> None:
    queue = JobQueue(1)
    jobs = [job("") for _ in range(5)]
    for each in jobs:
        queue.add(each)
    assert [queue.place_of(each) for each in jobs] == [0, 1, 2, 3, 4]
    assert list(taken(queue)) == jobs
    assert (len(queue), queue.size_bytes) == (0, 0)


def test_keys_take_turns() -> None:
    queue = JobQueue(1)
    many = [job("shop") for _ in range(1000)]
    for each in many:
        queue.add(each)
    order = taken(queue)
    assert [next(order) for _ in range(3)] == many[:3]
    few = [job("rival") for _ in range(2)]
    for each in few:
        queue.add(each)
    assert [queue.place_of(each) for each in few] == [1, 3]
    assert [next(order) for _ in range(5)] == [many[3], few[0], many[4], few[1], many[5]]


def test_a_key_that_was_away_has_saved_no_turns() -> None:
    queue = JobQueue(1)
    for _ in range(100):
        queue.add(job("shop"))
    order = taken(queue)
    for _ in range(50):
        next(order)
    late = [job("rival") for _ in range(3)]
    for each in late:
        queue.add(each)
    keys = [next(order).request.caller.key for _ in range(6)]
    assert keys == ["shop", "rival"] * 3


def test_low_priority_waits_behind_every_key() -> None:
    queue = JobQueue(1)
    low, normal = job("shop", low=True), [job("rival") for _ in range(3)]
    for each in (low, *normal):
        queue.add(each)
    assert list(taken(queue)) == [*normal, low]


def test_a_caller_who_may_have_no_more_begun_is_passed_over() -> None:
    queue = JobQueue(1)
    first, second = job("shop"), job("rival")
    queue.add(first)
    queue.add(second)
    assert queue.first_queued(lambda caller: caller.key != "shop") is second
    assert queue.first_queued(lambda caller: False) is None


def test_one_key_takes_half_of_what_may_prepare_for_long() -> None:
    queue = JobQueue(4)
    slow = [job("shop") for _ in range(4 * PREPARING_PER_PLACE + 1)]
    for each in slow:
        queue.add(each)
    for each in slow[:-1]:
        assert queue.first_queued(anyone) is each
        each.stage = Stage.STALLED
    assert queue.first_queued(anyone) is None
    other = job("rival")
    queue.add(other)
    assert queue.first_queued(anyone) is other
    slow[0].stage = Stage.READY
    other.stage = Stage.PREPARING
    assert queue.first_queued(anyone) is slow[-1]


def test_without_keys_one_caller_may_have_all_of_them() -> None:
    queue = JobQueue(1)
    for _ in range(20):
        queue.add(each := job(""))
        assert queue.first_queued(anyone) is each
        each.stage = Stage.STALLED


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), max_size=60))
def test_no_key_waits_for_more_than_one_job_of_each_other(steps: list[tuple[str, bool, int]]) -> None:
    """Between two jobs of a waiting key the model takes at most one of each other key; places are exact."""
    queue, waiting = JobQueue(1), dict[str, list[Job]]()
    since: dict[str, list[str]] = {}
    for key, removes, takes in steps:
        queue.add(each := job(key))
        if not waiting.get(key):
            since[key] = []
        waiting.setdefault(key, []).append(each)
        if removes and len(waiting[key]) > 1:
            queue.remove(waiting[key].pop())
        for _ in range(takes):
            best = queue.first_queued(anyone)
            if best is None:
                break
            queue.take(best)
            taken_key = best.request.caller.key
            assert waiting[taken_key].pop(0) is best
            since[taken_key] = []
            for other, jobs in waiting.items():
                if jobs and other != taken_key:
                    since[other].append(taken_key)
                    assert since[other].count(taken_key) <= 2
    everyone = sorted((each for jobs in waiting.values() for each in jobs), key=lambda each: each.priority)
    assert [queue.place_of(each) for each in everyone] == list(range(len(everyone)))
