"""Who asks: the tenant and the key that a request came with, and what they may do."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        tenant: whose jobs it sees; empty where no keys are set, so that everyone is one caller.
        key: name of its key, for logs; empty where no keys are set.
        operator: whether it sees and may act on the jobs of every tenant, and reads ``/metrics``.
    """

    tenant: str = ""
    key: str = ""
    operator: bool = False

    @property
    def key_id(self) -> tuple[str, str]:
        """Tells its key from every other's: the names of tenant and key."""
        return (self.tenant, self.key)

    def may_see(self, owner: Caller) -> bool:
        """Whether it may see, and act on, a job that ``owner`` submitted."""
        return self.operator or self.tenant == owner.tenant


ANYONE = Caller(operator=True)
"""The caller of a server without keys, and of what serves one caller by its nature: a worker, the command line."""

NOBODY = Caller()
"""A caller without a key where keys are set: it gets to the public paths alone."""
