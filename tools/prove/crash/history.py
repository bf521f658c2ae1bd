"""What callers, the receiver of webhooks and the model saw; and whether one server that never died could have done it.

Times are the system's monotonic clock in nanoseconds, which processes share. Nothing here knows how the server works:
the rules are those that callers are promised.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from tools.prove.crash.work import filler

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
OUTAGE_S = 60.0  # a job that is remembered for less may be forgotten before a dead server is back to send its webhook
DIED = "the process ended while it ran"
"""Begins the error of a job that ran each time when the server was killed."""

MAX_DELIVERIES = 8
"""How often a webhook may arrive: a kill between the receiver's answer and its commit sends it again, now and then."""


@attrs.frozen(kw_only=True)
class Wish:
    """A job that a caller asked for.

    Attributes:
        keep_s: how long its service remembers it after its end.
        ordered: whether its service takes one job after another, in the order of acceptance.
    """

    token: str
    service: str
    input: Mapping[str, Any]
    webhook: bool
    key: bool
    keep_s: float
    ordered: bool


@attrs.frozen(kw_only=True)
class Accepted:
    """``run`` answered."""

    wish: Wish
    job_id: str
    sent_ns: int
    answered_ns: int


@attrs.frozen(kw_only=True)
class Sight:
    """A caller saw a job; ``shown`` is its status object, None for 404."""

    job_id: str
    sent_ns: int
    answered_ns: int
    shown: Mapping[str, Any] | None

    @property
    def attempt(self) -> int:
        """From 1."""
        return 1 + int(self.shown.get("retries", 0)) if self.shown is not None else 0

    @property
    def end(self) -> tuple[Any, ...] | None:
        """What of it may never change again; None if it has not ended."""
        return end_of(self.shown) if self.shown is not None else None


@attrs.frozen(kw_only=True)
class Asked:
    """A caller cancelled or retried a job; ``status`` is the answer's, None if none came or it was refused."""

    what: str
    job_id: str
    sent_ns: int
    answered_ns: int
    status: str | None


@attrs.frozen(kw_only=True)
class Delivery:
    """A webhook arrived; ``accepted`` is whether it was answered with 2xx."""

    message: str
    body: Mapping[str, Any]
    accepted: bool


@attrs.define
class History:
    """What was seen, in no order: for each token how often it was ``submitted`` and when its ``runs`` began."""

    accepted: list[Accepted] = attrs.Factory(list)
    sights: list[Sight] = attrs.Factory(list)
    asked: list[Asked] = attrs.Factory(list)
    deliveries: list[Delivery] = attrs.Factory(list)
    submitted: Counter[str] = attrs.Factory(Counter)
    runs: dict[str, list[int]] = attrs.Factory(lambda: defaultdict(list))


def end_of(shown: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What of a status object may never change again; None if the job has not ended."""
    if shown["status"] not in ENDED:
        return None
    return (shown["status"], shown.get("retries", 0), shown.get("error"), repr(shown.get("output")))


class Checker:
    """Looks for breaches in a history.

    Args:
        history: complete: the server has had the time to end everything and to send every webhook.
        max_attempts: how often a job may run that is always there when the server is killed.
    """

    def __init__(self, history: History, max_attempts: int) -> None:
        self._history, self._max_attempts = history, max_attempts
        self._jobs = {each.job_id: each for each in reversed(history.accepted)}  # the first answer of each
        self._sights: dict[str, list[Sight]] = defaultdict(list)
        for sight in sorted(history.sights, key=lambda each: each.answered_ns):
            self._sights[sight.job_id].append(sight)
        self._asked: dict[str, list[Asked]] = defaultdict(list)
        for asked in history.asked:
            self._asked[asked.job_id].append(asked)
        self._deliveries: dict[str, list[Delivery]] = defaultdict(list)
        for delivery in history.deliveries:
            self._deliveries[delivery.body["id"]].append(delivery)

    def breaches(self) -> list[str]:
        """Every breach in a line."""
        rules = (self._right, self._asked_for, self._run)
        return [*self._keys(), *self._order(), *self._webhooks(), *self.promises(), *self._each(*rules)]

    def promises(self) -> list[str]:
        """Breaches of what holds whatever a job does: it is known, and ends once."""
        return self._each(self._remembered, self._ended_once)

    def _each(self, *rules: Callable[[Accepted], Iterator[str]]) -> list[str]:
        jobs = self._jobs.values()
        return [f"{job.wish.service} {job.job_id}: {said}" for job in jobs for rule in rules for said in rule(job)]

    def _last_end(self, job: Accepted) -> Sight | None:
        return next((sight for sight in reversed(self._sights[job.job_id]) if sight.end), None)

    def _remembered(self, job: Accepted) -> Iterator[str]:
        """It is known until its retention is over, and not again after that; its end is seen."""
        gone = False
        for sight in self._sights[job.job_id]:
            if sight.shown is None:
                if sight.answered_ns < job.answered_ns:
                    continue
                # An end that nobody saw may lie right after the acceptance.
                if sight.answered_ns - job.sent_ns < job.wish.keep_s * 1e9:
                    yield "was not found"
                gone = True
            elif gone and sight.sent_ns > 0:
                yield "was there again after it had been forgotten"
                gone = False
        if not gone and (not self._sights[job.job_id] or self._sights[job.job_id][-1].end is None):
            yield "did not end"

    def _ended_once(self, job: Accepted) -> Iterator[str]:
        """Each attempt has one end, and only a retry that a caller asked for follows an end."""
        ends: dict[int, tuple[Any, ...]] = {}
        latest: Sight | None = None
        for sight in self._sights[job.job_id]:
            if sight.shown is None:
                continue
            if sight.end is not None and ends.setdefault(sight.attempt, sight.end) != sight.end:
                yield f"ended twice: {ends[sight.attempt]} and {sight.end}"[:300]
            if latest is not None and latest.answered_ns < sight.sent_ns:
                if sight.attempt < latest.attempt:
                    yield f"attempt {sight.attempt} was seen after attempt {latest.attempt}"
                elif latest.end and sight.end != latest.end and not self._retried(job, sight.answered_ns):
                    yield f"was {latest.shown['status'] if latest.shown else ''} and then {sight.shown['status']}"
            latest = sight
        for delivery in self._deliveries[job.job_id]:
            end = end_of(delivery.body)
            attempt = 1 + int(delivery.body.get("retries", 0))
            if end is None or ends.setdefault(attempt, end) != end:
                yield f"its webhook said {end}, a caller saw {ends[attempt]}"[:300]
        if len(ends) > 1 and not any(asked.what == "retry" for asked in self._asked[job.job_id]):
            yield f"ended in attempts {sorted(ends)}, and nobody had asked for a retry"

    def _retries_after(self, job: Accepted, end: Sight) -> int:
        """How often a retry was asked for once an end had been seen; what came of it may be forgotten unseen."""
        return sum(asked.what == "retry" and asked.answered_ns > end.sent_ns for asked in self._asked[job.job_id])

    def _retried(self, job: Accepted, before_ns: int) -> bool:
        return any(asked.what == "retry" and asked.sent_ns < before_ns for asked in self._asked[job.job_id])

    def _right(self, job: Accepted) -> Iterator[str]:
        """Its end is one that this job can have, made by one of its own runs."""
        last = self._last_end(job)
        if last is None or last.shown is None:
            return
        status, error, wish = last.shown["status"], str(last.shown.get("error", "")), job.wish
        if status == "COMPLETED" and "output" not in last.shown:
            yield "has no output any more"
        elif status == "COMPLETED":
            output = last.shown["output"]
            made = filler(wish.token, output["began_ns"], wish.input.get("size", 0))
            if wish.input["outcome"] != "ok" or output["token"] != wish.token or output["filler"] != made:
                yield "has an output that is not its own"
            if output["began_ns"] not in self._history.runs[wish.token]:
                yield "has the output of a run that was none"
        elif status == "FAILED":
            failed_itself = wish.input["outcome"] == "fail" and error.startswith(wish.token)
            died = error.startswith(DIED) and last.attempt >= self._max_attempts
            if not (failed_itself or died):
                yield f"failed for no reason of its own: {error}"
        elif status == "TIMED_OUT" or not self._cancelled(job):
            yield f"is {status}, and nobody asked for that"

    def _cancelled(self, job: Accepted) -> bool:
        return any(asked.what == "cancel" for asked in self._asked[job.job_id])

    def _asked_for(self, job: Accepted) -> Iterator[str]:
        """What was answered to a retry or a cancellation is so from then on."""
        for asked in self._asked[job.job_id]:
            before = [s for s in self._sights[job.job_id] if s.answered_ns < asked.sent_ns and s.shown]
            after = [s for s in self._sights[job.job_id] if s.sent_ns > asked.answered_ns and s.shown]
            cancelled = asked.what == "cancel" and asked.status == "CANCELLED"
            if cancelled and any(s.shown and s.shown["status"] != "CANCELLED" for s in after):
                yield "a cancellation that had been answered was lost"
            answered_retry = asked.what == "retry" and asked.status and before and after
            if answered_retry and min(s.attempt for s in after) <= max(s.attempt for s in before):
                yield "a retry that had been answered was lost"

    def _run(self, job: Accepted) -> Iterator[str]:
        """It runs at most once for each attempt, and once more where a kill came before a start was written.

        That may be so for each submission, also one that got no answer and was lost, and for each retry.
        """
        runs, last = sorted(self._history.runs[job.wish.token]), self._last_end(job)
        retries = sum(asked.what == "retry" for asked in self._asked[job.job_id])
        unwritten = max(1, self._history.submitted[job.wish.token]) + retries
        if last is not None and len(runs) > last.attempt + self._retries_after(job, last) + unwritten:
            yield f"ran {len(runs)} times in {last.attempt} attempts"
        first = next((sight for sight in self._sights[job.job_id] if sight.end), None)
        if first is not None and runs and runs[-1] > first.answered_ns and not self._retried(job, runs[-1]):
            yield "ran after its end had been seen"

    def _keys(self) -> Iterator[str]:
        """Requests with one idempotency key are one job."""
        by_token: dict[str, set[str]] = defaultdict(set)
        for each in self._history.accepted:
            by_token[each.wish.token].add(each.job_id)
        for token, ids in by_token.items():
            if len(ids) > 1:
                yield f"one idempotency key, {len(ids)} jobs: {token}"

    def _order(self) -> Iterator[str]:
        """What one caller submitted after another answer runs after it, where one job runs at a time."""
        began = [
            (job, runs[0])
            for job in self._jobs.values()
            if job.wish.ordered and not self._asked[job.job_id] and len(runs := self._history.runs[job.wish.token]) == 1
        ]
        began.sort(key=lambda each: each[1])
        latest_sent = 0  # of those that have begun
        for job, _ in began:
            if job.answered_ns < latest_sent:
                yield f"{job.job_id} ran after one that was submitted after its acceptance"
            latest_sent = max(latest_sent, job.sent_ns)

    def _webhooks(self) -> Iterator[str]:
        """Each end is delivered, always with one id and one content."""
        contents: dict[str, str] = {}
        for each in self._history.deliveries:
            if contents.setdefault(each.message, repr(end_of(each.body))) != repr(end_of(each.body)):
                yield f"webhook {each.message} came with two contents"
        for message, times in Counter(each.message for each in self._history.deliveries if each.accepted).items():
            if times > MAX_DELIVERIES:
                yield f"webhook {message} had arrived and came again, {times} times in all"
        messages: dict[tuple[str, int], set[str]] = defaultdict(set)
        for each in self._history.deliveries:
            messages[each.body["id"], each.body.get("retries", 0)].add(each.message)
        for (job_id, _), ids in messages.items():
            if len(ids) > 1:
                yield f"{job_id}: one end was announced by {len(ids)} webhook ids"
        yield from self.missing_webhooks()

    def missing_webhooks(self) -> list[str]:
        """Ends that no webhook told of, unless a retry took their place or the job was forgotten before it arrived."""
        delivered = {(each.body["id"], end_of(each.body)) for each in self._history.deliveries}
        missing = []
        for job in self._jobs.values():
            last = self._last_end(job)
            if not job.wish.webhook or last is None or job.wish.keep_s < OUTAGE_S or self._retries_after(job, last):
                continue
            if (job.job_id, last.end) not in delivered:
                missing.append(f"{job.wish.service} {job.job_id}: no webhook told of its end")
        return missing
