"""Deliberate faults in what keeps jobs: the proof has to find each of them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from aiservices.jobs import records as job_records
from aiservices.jobs.records import JobRecords
from aiservices.jobs.restorer import Restorer
from aiservices.journal.blobs import Blobs
from aiservices.journal.events import Delivered, Ended, Event, Forgotten, Requeued, Started
from aiservices.journal.journal import Journal
from aiservices.journal.records import JobRecord
from aiservices.journal.store import Store
from aiservices.webhooks import sender


@attrs.frozen
class Fault:
    """One fault: what it is, and how to put it into this process."""

    about: str
    install: Callable[[], None]


def _dropping(kind: type[Event], which: Callable[[Any], bool] = lambda _: True) -> Callable[[], None]:
    """Leave events of a kind out of the journal."""

    def install() -> None:
        write = Journal.write

        def dropping(self: Journal, event: Event) -> int:
            return self._written if isinstance(event, kind) and which(event) else write(self, event)

        Journal.write = dropping  # type: ignore[method-assign]

    return install


def _answer_early() -> None:
    async def at_once(*_: Any) -> None:
        return

    JobRecords.wait = at_once  # type: ignore[method-assign,assignment]


def _show_early() -> None:
    wait = JobRecords.wait

    async def unless_ended(self: JobRecords, job: Any) -> None:
        if not job.ended:
            await wait(self, job)

    JobRecords.wait = unless_ended  # type: ignore[method-assign]


def _announce_early() -> None:
    JobRecords.when_written = lambda self, job, call: call()  # type: ignore[method-assign]


def _leave_commits_out() -> None:
    transact, turns = Store._transact, itertools.count(1)

    def sometimes(self: Store, batch: Any) -> None:
        if next(turns) % 20:
            transact(self, batch)

    Store._transact = sometimes  # type: ignore[method-assign]


def _swap_order() -> None:
    restore = Restorer.restore

    async def backwards(self: Restorer, remembered: Any) -> None:
        await restore(self, remembered[::-1])

    Restorer.restore = backwards  # type: ignore[method-assign]
    revive = JobRecords.revive

    def by_place(self: JobRecords, record: JobRecord, jobs: Any) -> Any:
        return revive(self, attrs.evolve(record, sequence=10**9 - record.sequence), jobs)

    JobRecords.revive = by_place  # type: ignore[method-assign]


def _write_payloads_late() -> None:
    write = Blobs._write
    waiting: list[tuple[Any, bytes]] = []

    def late(self: Blobs, path: Any, payload: bytes) -> None:
        waiting.append((path, payload))
        if len(waiting) > 3:
            write(self, *waiting.pop(0))

    Blobs._write = late  # type: ignore[method-assign]


def _collect_what_is_named() -> None:
    named, turns = Blobs.named, itertools.count(1)

    def sometimes(self: Blobs, names: Any) -> None:
        if next(turns) % 10:
            named(self, names)

    Blobs.named = sometimes  # type: ignore[method-assign]


def _owe_no_webhooks() -> None:
    ended = Journal.write

    def write(self: Journal, event: Event) -> int:
        if isinstance(event, Ended):
            event = msgspec.structs.replace(event, webhook_due=False)
        return ended(self, event)

    Journal.write = write  # type: ignore[method-assign]


def _name_webhooks_anew() -> None:
    vars(sender)["message_id"] = lambda job_id, attempt: f"msg_{uuid.uuid4().hex}"


def _forget_attempts() -> None:
    revive = JobRecords.revive

    def from_the_first(self: JobRecords, record: JobRecord, jobs: Any) -> Any:
        if record.ended_at is None:
            record = attrs.evolve(record, attempt=1)
        return revive(self, record, jobs)

    JobRecords.revive = from_the_first  # type: ignore[method-assign]


def _forget_keys() -> None:
    job_records._PLAIN.pop("idempotency_key")


FAULTS = {
    "answer-early": Fault("`run` answers before the commit", _answer_early),
    "show-early": Fault("an end is shown before its commit", _show_early),
    "announce-early": Fault("a webhook goes out before the end's commit", _announce_early),
    "commit-left-out": Fault("one transaction in 20 is left out", _leave_commits_out),
    "order-swapped": Fault("what waited is queued again backwards", _swap_order),
    "starts-left-out": Fault("starts are not written", _dropping(Started)),
    "cancels-left-out": Fault("cancellations are not written", _dropping(Ended, lambda e: e.status == "CANCELLED")),
    "retries-left-out": Fault("retries are not written", _dropping(Requeued)),
    "forgets-left-out": Fault("what is forgotten stays in the file", _dropping(Forgotten)),
    "deliveries-left-out": Fault("webhooks that arrived are sent at each start", _dropping(Delivered)),
    "payloads-late": Fault("a large payload is written after the commit that names it", _write_payloads_late),
    "payloads-collected": Fault("one payload in 10 is deleted though a row names it", _collect_what_is_named),
    "webhooks-not-due": Fault("an end does not say that its webhook is due", _owe_no_webhooks),
    "webhooks-renamed": Fault("a webhook gets another id at each attempt", _name_webhooks_anew),
    "attempts-forgotten": Fault("a restart counts the attempts from 1", _forget_attempts),
    "keys-forgotten": Fault("idempotency keys are not written", _forget_keys),
}
