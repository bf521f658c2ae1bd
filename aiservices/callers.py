"""Who asks: the tenant and the key that a request came with, and what they may do."""

from __future__ import annotations

from typing import Annotated

import attrs
from msgspec import Meta


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of one tenant, over all its keys; None: none but the server's own.

    Attributes:
        max_queued_jobs: most of its jobs that may wait in one service's queue.
        runs_per_minute: most accepted ``run``, ``runsync``, ``retry`` and speech requests a minute, over all services.
        run_burst: how many of them may come at once after a pause.
    """

    max_queued_jobs: Annotated[int, Meta(ge=1)] | None = None
    runs_per_minute: Annotated[float, Meta(gt=0)] | None = None
    run_burst: Annotated[int, Meta(ge=1)] = 10


@attrs.frozen(kw_only=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        tenant: whose jobs it sees; empty where no keys are set, so that everyone is one caller.
        key: name of its key, for logs; empty where no keys are set.
        operator: whether it sees and may act on the jobs of every tenant, and reads ``/metrics``.
        shares: whether there are other tenants, so that the queue is shared out between them.
        limits: of its tenant.
    """

    tenant: str = ""
    key: str = ""
    operator: bool = False
    shares: bool = False
    limits: Limits = Limits()

    def may_see(self, owner: Caller) -> bool:
        """Whether it may see, and act on, a job that ``owner`` submitted."""
        return self.operator or self.tenant == owner.tenant


ANYONE = Caller(operator=True)
"""The caller of a server without keys, and of what serves one caller by its nature: a worker, the command line."""

NOBODY = Caller()
"""A caller without a key where keys are set: it gets to the public paths alone."""
