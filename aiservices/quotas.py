"""How much the holder of each key may ask for, counted over all services of the process.

Limits stand in the file of keys and change with it, also for jobs that wait already. Lives on the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import attrs

from aiservices.callers import Caller
from aiservices.errors import LimitReached

BURST_S = 10.0
"""A key that was quiet may submit what its rate allows in this time at once: batches are how backends work."""

UNKNOWN_RETRY_AFTER_S = 5.0
"""What a caller is told whose queue is full: when its own jobs end is not measured by key."""

KeyId = tuple[str, str]
"""Names of the tenant and of its key."""


@attrs.frozen(kw_only=True)
class KeyLimits:
    """What one key may ask for; None is without limit.

    Attributes:
        jobs_per_minute: jobs submitted or retried, on average; :data:`BURST_S` of them may come at once.
        max_queued: most jobs that wait at once; more are refused.
        max_running: most jobs that are worked on at once, being prepared and finished included; more wait.
    """

    jobs_per_minute: float | None = None
    max_queued: int | None = None
    max_running: int | None = None


NO_LIMITS = KeyLimits()


@attrs.define
class _Use:
    waiting: int = 0
    running: int = 0
    due_at: float = 0.0
    """When the last submitted job would have come at the key's even rate (GCRA's theoretical arrival time)."""


class Quotas:
    """Counts what each key has, and says what it may have. Callers without a named key have no limits.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: Mapping[KeyId, KeyLimits] = {}
        self._uses: dict[KeyId, _Use] = {}
        self._on_room: list[Callable[[], None]] = []

    def set_limits(self, limits: Mapping[KeyId, KeyLimits]) -> None:
        """Replace every limit; keys that are not named have none."""
        self._limits = limits
        self._tell_room()

    def when_room(self, call: Callable[[], None]) -> None:
        """Have a call made whenever a job may begin that had to wait for its key."""
        self._on_room.append(call)

    def check(self, caller: Caller) -> None:
        """Raise LimitReached if the caller may submit no job now; else count one against its rate."""
        limits = self._limits.get(caller.key_id)
        if limits is None:
            return
        use = self._use(caller)
        if limits.max_queued is not None and use.waiting >= limits.max_queued:
            raise LimitReached(f"this key may have {limits.max_queued} jobs in the queue", UNKNOWN_RETRY_AFTER_S)
        if limits.jobs_per_minute is not None:
            interval_s, now = 60.0 / limits.jobs_per_minute, self._clock()
            early_s = use.due_at - now - max(0.0, BURST_S - interval_s)
            if early_s > 0:
                raise LimitReached(f"this key may submit {limits.jobs_per_minute:g} jobs a minute", early_s)
            use.due_at = max(use.due_at, now) + interval_s

    def may_begin(self, caller: Caller) -> bool:
        """Whether one more of the caller's jobs may be worked on."""
        most = self._limits.get(caller.key_id, NO_LIMITS).max_running
        return most is None or self._use(caller).running < most

    def count(self, caller: Caller, *, waiting: int, running: int) -> None:
        """Note that so many more of the caller's jobs wait, or are worked on; fewer where negative."""
        if not caller.key:
            return
        had_room = self.may_begin(caller)
        use = self._use(caller)
        use.waiting += waiting
        use.running += running
        if not (use.waiting or use.running) and caller.key_id not in self._limits:
            del self._uses[caller.key_id]  # keys come and go; those with limits are as many as their file has
        elif not had_room and self.may_begin(caller):
            self._tell_room()

    def _use(self, caller: Caller) -> _Use:
        return self._uses.setdefault(caller.key_id, _Use())

    def _tell_room(self) -> None:
        for call in self._on_room:
            call()
