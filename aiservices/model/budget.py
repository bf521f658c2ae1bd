"""How much of each device's memory the models of this process may hold together, and which of them gives way.

A model that is to be loaded takes its share first. Where there is no room, the models of that device that nobody uses
give way, the one that was used longest ago first; where all are in use, it waits until one is not. Those that wait for
the same device are served in their order. A model holds nothing while it waits, and one that is loaded needs no turn
to become idle, so two never wait for each other.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

import attrs

from aiservices.errors import ConfigError, ServiceError
from aiservices.settings import Config


@attrs.define(eq=False, kw_only=True)
class Share:
    """What one model holds of a device's memory.

    Attributes:
        budget: whose share it is.
        gib: what it needs, as declared or, where that is more, as measured.
        idle_since: when its last job ended, on the loop's clock; None while it is in use or not loaded.
        look: has the model's service ask :meth:`wanted_back`.
        device: where it holds memory; None: nowhere.
        leaving: whether it gives way already.
    """

    budget: MemoryBudget = attrs.field(repr=False)
    gib: float
    idle_since: Callable[[], float | None]
    look: Callable[[], None]
    device: str | None = None
    leaving: bool = False

    async def take(self, device: str, say: Callable[[str], None]) -> None:
        """Wait until the model may be loaded; others give way meanwhile.

        Args:
            device: as the model is told; the share holds memory of it afterwards.
            say: told what is waited for.

        Raises:
            ServiceError: it needs more than the device's bound.
        """
        await self.budget.take(self, full_name(device), say)

    def measured(self, gib: float) -> None:
        """Note what the model took by its loading, which counts where it is more than declared."""
        bound = self.budget.bound_gib(self.device)
        self.gib = max(self.gib, gib if bound is None else min(gib, bound))  # or it could never be loaded again

    def give_back(self) -> None:
        """Note that the model was unloaded."""
        device, self.device, self.leaving = self.device, None, False
        if device is not None:
            self.budget.look_again(device)

    def wanted_back(self) -> bool:
        """Whether the model, which nobody uses, has to give way now: it does then."""
        self.leaving = self.leaving or self.budget.wants_back(self)
        return self.leaving


class MemoryBudget:
    """Divides each device's memory among models. Lives on the event loop.

    Args:
        gib: the bound of each device that has one, by name.
    """

    def __init__(self, gib: Mapping[str, float]) -> None:
        self._gib = {device: bound for device, bound in gib.items() if bound > 0}
        self._shares: list[Share] = []
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: dict[str, float] = {}
        """What the one whose turn it is needs, by device."""
        self._given_back: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def share(self, gib: float, idle_since: Callable[[], float | None], look: Callable[[], None]) -> Share:
        """Return the share of one more model, which holds nothing yet; see :class:`Share`."""
        share = Share(budget=self, gib=gib, idle_since=idle_since, look=look)
        self._shares.append(share)
        return share

    def bound_gib(self, device: str | None) -> float | None:
        """The bound of a device; None if it has none."""
        return None if device is None else self._gib.get(device)

    def look_again(self, device: str) -> None:
        """Memory of a device was given back."""
        self._given_back[device].set()

    async def take(self, share: Share, device: str, say: Callable[[str], None]) -> None:
        """Wait for a share's turn and for room; for :meth:`Share.take` alone."""
        bound = self._gib.get(device)
        if bound is None:
            share.device = device
            return
        if share.gib > bound:
            raise ServiceError(f"it needs {share.gib:g} GiB of {device}'s {bound:g} GiB (device_memory_gib)")
        say(f"waiting for memory: {share.gib:g} GiB of {device}'s {bound:g} GiB, which other models use")
        async with self._turns[device]:
            await self._wait_for_room(share, device)
            share.device = device  # before the next one's turn

    def wants_back(self, share: Share) -> bool:
        """Whether who waits needs this idle share; for :meth:`Share.wanted_back` alone."""
        if share.device not in self._wanted:
            return False
        missing = self._missing(share.device, self._wanted[share.device])
        for other in self._idle(share.device):
            if missing <= 0 or other is share:
                return missing > 0
            missing -= other.gib
        return False

    async def _wait_for_room(self, share: Share, device: str) -> None:
        self._wanted[device] = share.gib
        try:
            while sum(other.gib for other in self._holders(device)) + share.gib > self._gib[device]:
                self._given_back[device].clear()
                for other in self._holders(device):
                    other.look()
                await self._given_back[device].wait()
        finally:
            del self._wanted[device]

    def _missing(self, device: str, gib: float) -> float:
        """How much is to be given back yet, beside what is on its way."""
        staying = sum(other.gib for other in self._holders(device) if not other.leaving)
        return staying + gib - self._gib[device]

    def _holders(self, device: str) -> list[Share]:
        return [share for share in self._shares if share.device == device and share.gib > 0]

    def _idle(self, device: str) -> list[Share]:
        """Models that nobody uses and that do not give way yet, the one used longest ago first."""
        since = {share: share.idle_since() for share in self._holders(device) if not share.leaving}
        idle = [(at, number, share) for number, (share, at) in enumerate(since.items()) if at is not None]
        return [share for _, _, share in sorted(idle, key=lambda entry: entry[:2])]


def check_budget(config: Config) -> None:
    """Refuse bounds of what is no device, and a service that alone would pass one.

    Raises:
        ConfigError: naming the setting.
    """
    bounds = config.server.device_memory_gib
    for device in bounds:
        if device != "cpu" and not device.removeprefix("cuda:").isdecimal():
            raise ConfigError(f"[server] device_memory_gib: expected 'cpu' or 'cuda:N', got {device!r}")
    for service in config.services.values():
        bound = bounds.get(full_name(service.device), 0.0)
        if 0 < bound < service.memory_gib:
            where = f"[services.{service.name}] memory_gib"
            given = f"{service.memory_gib:g} GiB on {service.device}"
            raise ConfigError(f"{where}: {given} are more than its bound of {bound:g} GiB ([server] device_memory_gib)")


def full_name(device: str) -> str:
    """The name by which a device has its bound: ``cuda`` is the first GPU."""
    return "cuda:0" if device == "cuda" else device
