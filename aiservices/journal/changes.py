"""Many events of one job become the one change that its row needs."""

from __future__ import annotations

from collections.abc import Iterable

from aiservices.journal.events import Accepted, Delivered, Ended, Event, Forgotten, Requeued, Started


class Change:
    """What is to be written of one job. Made on the writer's thread.

    Attributes:
        accepted: its row is new.
        queued_at: when it was last queued again; None if it was not.
        last: its newest state; None leaves the row's.
        delivered: the attempt whose webhook arrived, where the end was written before; None if none did.
        forgotten: its row goes.
    """

    __slots__ = ("accepted", "delivered", "forgotten", "last", "queued_at")

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.queued_at: float | None = None
        self.last: Started | Ended | Requeued | None = None
        self.delivered: int | None = None
        self.forgotten = False

    def add(self, event: Event) -> None:
        """Take one more event of the job into account."""
        if isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Forgotten):
            self.forgotten = True
        elif isinstance(event, Delivered):
            self.delivered = event.attempt
        else:
            self.last = event
            if isinstance(event, Requeued):
                self.queued_at = event.at

    @property
    def webhook_due(self) -> bool:
        """Whether a delivery has to follow the newest state."""
        last = self.last
        return isinstance(last, Ended) and last.webhook_due and self.delivered != last.attempt


def collapse(changes: dict[str, Change], events: Iterable[Event]) -> None:
    """Add events, in their order, to the change of each one's job."""
    for event in events:
        change = changes.get(event.job_id)
        if change is None:
            change = changes[event.job_id] = Change()
        change.add(event)
