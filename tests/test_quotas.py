from __future__ import annotations

import pytest

from aiservices.callers import ANYONE, Caller
from aiservices.errors import LimitReached
from aiservices.quotas import BURST_S, KeyLimits, Quotas

SHOP = Caller(tenant="shop", key="one")
RIVAL = Caller(tenant="rival", key="one")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def quotas(clock: Clock | None = None, **limits: float) -> Quotas:
    made = Quotas(clock or Clock())
    made.set_limits({SHOP.key_id: KeyLimits(**limits)})  # type: ignore[arg-type]
    return made


def submitted(made: Quotas, caller: Caller, most: int) -> int:
    """How many of so many jobs are let in."""
    for count in range(most):
        try:
            made.check(caller)
        except LimitReached:
            return count
    return most


def test_a_rate_allows_a_burst_and_then_one_job_an_interval() -> None:
    clock = Clock()
    made = quotas(clock, jobs_per_minute=60)
    assert submitted(made, SHOP, 100) == BURST_S
    clock.now += 0.9
    with pytest.raises(LimitReached, match="60 jobs a minute") as refused:
        made.check(SHOP)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    clock.now += 0.1
    assert submitted(made, SHOP, 100) == 1
    clock.now += 3600
    assert submitted(made, SHOP, 100) == BURST_S
    assert submitted(made, RIVAL, 100) == submitted(made, ANYONE, 100) == 100


def test_a_rate_below_one_a_burst_allows_one_at_once() -> None:
    clock = Clock()
    made = quotas(clock, jobs_per_minute=1)
    assert submitted(made, SHOP, 5) == 1
    clock.now += 59.9
    assert submitted(made, SHOP, 5) == 0
    clock.now += 0.2
    assert submitted(made, SHOP, 5) == 1


def test_waiting_jobs_are_bounded() -> None:
    made = quotas(max_queued=2)
    made.count(SHOP, waiting=2, running=0)
    with pytest.raises(LimitReached, match="2 jobs in the queue"):
        made.check(SHOP)
    made.check(RIVAL)
    made.count(SHOP, waiting=-1, running=1)
    made.check(SHOP)


def test_running_jobs_are_bounded_and_those_who_wait_are_woken() -> None:
    made, woken = quotas(max_running=1), list[int]()
    made.when_room(lambda: woken.append(1))
    assert made.may_begin(SHOP)
    made.count(SHOP, waiting=-1, running=1)
    assert not made.may_begin(SHOP)
    assert made.may_begin(RIVAL)
    made.count(RIVAL, waiting=0, running=-1)
    assert woken == []
    made.count(SHOP, waiting=0, running=-1)
    assert made.may_begin(SHOP)
    assert woken == [1]


def test_new_limits_hold_at_once_and_count_what_was_there_before() -> None:
    made, woken = Quotas(), list[int]()
    made.when_room(lambda: woken.append(1))
    made.count(SHOP, waiting=0, running=3)
    assert made.may_begin(SHOP)
    made.set_limits({SHOP.key_id: KeyLimits(max_running=3)})
    assert not made.may_begin(SHOP)
    made.set_limits({})
    assert made.may_begin(SHOP)
    assert woken == [1, 1]


def test_nothing_is_kept_of_a_key_that_has_no_job_and_no_limit() -> None:
    made = Quotas()
    made.count(SHOP, waiting=1, running=0)
    made.count(SHOP, waiting=-1, running=0)
    assert made._uses == {}
