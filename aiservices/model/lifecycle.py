"""A model from its files to its memory and back.

::

    COLD --load()--> LOADING --> READY --close()--> STOPPED
                        \\---> FAILED     (what load() raised; loading again is allowed)
                     READY --> FAILED     (fail(): the device broke or its thread hangs, for good)
                     READY --rest()--> UNLOADING --> COLD     (nobody uses it; the next job loads it again)

Everything here lives on the event loop; the handler's ``load`` and ``unload`` run on the model's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from aiservices.errors import ModelBroken, ServiceError
from aiservices.handler import Handler
from aiservices.logs import get_logger
from aiservices.metrics import ServiceMetrics
from aiservices.model.budget import Share
from aiservices.model.device import allocated_gib, check_memory, resolve_device
from aiservices.model.thread import ModelThread, forget_model, keep_out_of_collections
from aiservices.settings import ServiceConfig
from aiservices.storage import ModelStore, Progress

UNLOAD_TIMEOUT_S = 30.0

log = get_logger(__name__)


class ServiceState(StrEnum):
    """Where the service's model is."""

    COLD = "COLD"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class LoadFailed(ServiceError):
    """The model could not be loaded; says why."""


class Model:
    """The model of one service.

    Args:
        handler: loads and unloads it.
        config: where its files are, and what for.
        store: fetches the files.
        load_slot: held while a model loads: one at a time, so that memory and imports do not race.
        metrics: of the service.
        share: of its device's memory.
    """

    def __init__(
        self,
        handler: Handler[Any, Any],
        config: ServiceConfig,
        store: ModelStore,
        load_slot: asyncio.Lock,
        metrics: ServiceMetrics,
        share: Share,
    ) -> None:
        self.state = ServiceState.COLD
        self.reason: str | None = None
        """Why it is not READY."""
        self.broken = False
        """Whether only a new process helps."""
        self.thread = ModelThread(f"model-{config.name}")
        self._handler = handler
        self._config = config
        self._store = store
        self._load_slot = load_slot
        self._metrics = metrics
        self._share = share
        self._in_memory = False
        self._unloading: asyncio.Future[None] | None = None
        metrics.state(self.state)

    def expect_load(self) -> None:
        """Say that :meth:`load` is about to be called."""
        self._set(ServiceState.LOADING, "the model is waiting to be loaded")

    async def load(self) -> None:
        """Fetch the files and load them.

        Raises:
            LoadFailed: it is FAILED now; says why.
        """
        began = time.monotonic()
        try:
            model_dir, options = await self._fetch()
            device = await asyncio.wrap_future(self.thread.submit(partial(resolve_device, self._config.device)))
            await self._share.take(device, self._say)
            async with self._load_slot:
                self.reason = "the model is being loaded"
                self._in_memory = True
                load = partial(self._load_here, model_dir, device, options)
                self._share.measured(await asyncio.wrap_future(self.thread.submit(load)))
        except Exception as error:
            reason = self._why(error)
            await self.unload()
            self._share.give_back()
            self._set(ServiceState.FAILED, reason)
            raise LoadFailed(reason) from None
        self._set(ServiceState.READY, None)
        log.info("service.ready", service=self._config.name, device=device, seconds=round(time.monotonic() - began, 3))

    def fail(self, reason: str) -> None:
        """Give the model up for good: its device is broken, or its thread hangs."""
        self.broken = True
        log.critical("service.broken", service=self._config.name, reason=reason)
        self._set(ServiceState.FAILED, reason)

    async def rest(self) -> None:
        """Unload a model that nobody uses; it is COLD then, and may be loaded again.

        Raises:
            ModelBroken: it did not unload in time, so its thread hangs.
        """
        began = time.monotonic()
        why = "another needs its memory" if self._share.leaving else f"nobody used it for {self._config.idle_s:g} s"
        self._set(ServiceState.UNLOADING, f"the model is being unloaded: {why}")
        if not await self.unload():
            raise ModelBroken(f"the model hangs: it did not unload within {UNLOAD_TIMEOUT_S:g} s")
        self._share.give_back()
        self._set(ServiceState.COLD, None)
        seconds = round(time.monotonic() - began, 3)
        log.info("service.rests", service=self._config.name, reason=why, seconds=seconds)

    async def unload(self) -> bool:
        """Give the memory back, on the model's thread; that of a broken model is left to the end of the process.

        Called again while it unloads, or after that was cancelled, it waits for the same unloading.

        Returns:
            False if it took too long, so that the thread may still be at it.
        """
        if not self._in_memory or self.broken:
            return True
        if self._unloading is None:
            self._unloading = asyncio.wrap_future(self.thread.submit(self._unload_here))
        in_time = True
        try:
            await asyncio.wait_for(asyncio.shield(self._unloading), UNLOAD_TIMEOUT_S)
        except TimeoutError:
            in_time = False
            log.warning("service.unload_timed_out", service=self._config.name, seconds=UNLOAD_TIMEOUT_S)
        except Exception as error:
            log.error("service.unload_failed", service=self._config.name, exc_info=error)
        self._in_memory, self._unloading = False, None
        return in_time

    async def close(self) -> None:
        """Unload and let the thread end."""
        await self.unload()
        self._share.give_back()
        self.thread.stop()
        self._set(ServiceState.STOPPED, None)

    def _set(self, state: ServiceState, reason: str | None) -> None:
        self.state, self.reason = state, reason
        self._metrics.state(state)

    async def _fetch(self) -> tuple[Path | None, Mapping[str, Any]]:
        """Fetch the model, and the folders that options name; return it and the options with local folders."""
        local = {}
        self.reason = "the model is being fetched"
        model_dir = await self._store.resolve(self._config.model, self._on_fetching)
        for option, uri in option_folders(self._config, self._handler).items():
            self.reason = f"options.{option} is being fetched"
            on_progress = partial(self._on_fetching, what=f"options.{option}")
            local[option] = str(await self._store.resolve(uri, on_progress, option=option))
        return model_dir, {**self._config.options, **local}

    def _say(self, reason: str) -> None:
        self.reason = reason

    def _on_fetching(self, progress: Progress, what: str = "the model") -> None:
        self.reason = f"{what} is being fetched: {progress}"

    def _why(self, error: Exception) -> str:
        if isinstance(error, ServiceError):
            reason = f"the model could not be loaded: {error}"
            log.error("service.load_failed", service=self._config.name, reason=reason)
        else:
            reason = f"the model could not be loaded: {type(error).__name__}; the server's log says more"
            log.error("service.load_failed", service=self._config.name, reason=reason, exc_info=error)
        return reason

    def _load_here(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> float:
        """On the model's thread; return how many GiB of the device it took."""
        check_memory(self._config.memory_gib, device)
        before_gib = allocated_gib(device)
        self._handler.load(model_dir, device, options)
        keep_out_of_collections()
        return allocated_gib(device) - before_gib

    def _unload_here(self) -> None:
        """On the model's thread."""
        self._handler.unload()
        forget_model()


def option_folders(config: ServiceConfig, handler: Handler[Any, Any]) -> dict[str, str]:
    """Return the options of a service that name folders, with what they say; what is no text is left to ``load``."""
    given = {option: config.options.get(option) for option in handler.option_folders}
    return {option: value for option, value in given.items() if value and isinstance(value, str)}
