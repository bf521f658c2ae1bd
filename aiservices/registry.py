"""The services of one process by name: built from a profile, started, drained and closed together."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import socket
import traceback
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from aiservices.errors import ConfigError, UnknownService, nearest
from aiservices.fetch import Fetcher
from aiservices.handler import BatchHandler, Handler, StepHandler
from aiservices.journal import JobRecord, Journal
from aiservices.logs import get_logger
from aiservices.metrics import Metrics, watch_loop_lag
from aiservices.model import MemoryBudget, check_budget, gpu_memory
from aiservices.options import read_options
from aiservices.outputs import OutputStore
from aiservices.quotas import Quotas
from aiservices.sandbox import Children, Limits
from aiservices.service import Service
from aiservices.settings import Config, ServiceConfig
from aiservices.shared import Shared
from aiservices.storage import ModelStore
from aiservices.webhooks import WebhookSender

log = get_logger(__name__)

AnyHandler = Handler[Any, Any]

RESERVED_FIELDS: Mapping[str, str] = {
    "action": 'would be taken for a warm-up, {"action": "warmup"}',
    "service": "would be taken for the choice of a service, which RunPod's workers make by it",
}
"""Names that no field of an ``Input`` may have, and why."""


class Registry:
    """Every service of the running profile and what they share.

    Args:
        config: all settings.
        fetcher: stands in for the guarded fetch, in tests.
        journal: keeps accepted jobs beyond the process, not opened yet; None: memory alone does.

    Raises:
        ConfigError: a handler cannot be imported or is no handler, or a service alone passes its device's bound.
    """

    def __init__(self, config: Config, *, fetcher: Fetcher | None = None, journal: Journal | None = None) -> None:
        check_budget(config)
        self.config = config
        self.metrics = Metrics()
        self.quotas = Quotas()
        self.broken_event = asyncio.Event()
        self.starting = True
        """Until the jobs of an earlier process are known again: so long nobody can be told which jobs there are."""
        self.draining = False
        self._pool = ThreadPoolExecutor(config.server.pool_threads, thread_name_prefix="pool")
        server = config.server
        self._children = Children(
            Limits(
                processes=server.decoder_processes,
                wall_s=server.decode_timeout_s,
                memory_bytes=server.decoder_memory_bytes,
            )
        )
        self._fetcher = fetcher or Fetcher(config.fetch, pool=self._pool, on_result=self.metrics.fetched)
        self._webhooks = WebhookSender(config.webhook, self._fetcher, on_result=self._on_webhook)
        self._outputs = OutputStore(config.outputs, config.s3, self._fetcher)
        self._store = ModelStore(config)
        shared = Shared(
            fetcher=self._fetcher,
            webhooks=self._webhooks,
            outputs=self._outputs,
            metrics=self.metrics,
            store=self._store,
            pool=self._pool,
            children=self._children,
            load_slot=asyncio.Lock(),
            budget=MemoryBudget(config.server.device_memory_gib),
            worker_id=_worker_id(),
            on_broken=self.broken_event.set,
            quotas=self.quotas,
            journal=journal,
        )
        self.services: Mapping[str, Service] = {
            name: Service(service, load_handler(service), shared) for name, service in config.services.items()
        }
        self._lag_watch: asyncio.Task[None] | None = None
        self._journal = journal
        self.metrics.watch_devices(gpu_memory)

    @property
    def broken(self) -> bool:
        """Whether a model's device is beyond repair in this process."""
        return self.broken_event.is_set()

    @property
    def busy(self) -> bool:
        """Whether any job has not ended yet."""
        return any(service.busy for service in self.services.values())

    def get(self, name: str) -> Service:
        """Return a service by name, or raise UnknownService."""
        try:
            return self.services[name]
        except KeyError:
            raise UnknownService(name, list(self.services)) from None

    def _on_webhook(self, service: str, job_id: str, attempt: int, result: str) -> None:
        self.metrics.service(service).webhook(result)

    async def start(self) -> None:
        """Go on with the jobs of an earlier process and start every service; models load behind it.

        Raises:
            ServiceError: the journal cannot be opened; says why.
        """
        await self._fetcher.start()
        await self._restore()
        self._lag_watch = asyncio.create_task(watch_loop_lag(self.metrics))
        for service in self.services.values():
            await service.start()
        self.starting = False
        log.info("registry.started", profile=self.config.profile, services=list(self.services))

    async def _restore(self) -> None:
        if self._journal is None:
            return
        self._journal.on_refused = self._on_refused
        self._journal.on_commit = self.metrics.journal_commit
        journal = self._journal
        self.metrics.watch_journal(lambda: journal.failing is not None)
        records = await self._journal.open()
        by_service: dict[str, list[JobRecord]] = {}
        for record in records:
            by_service.setdefault(record.service, []).append(record)
        for name, theirs in by_service.items():
            if name in self.services:
                await self.services[name].restore(theirs)
            else:
                log.warning("journal.service_not_running", service=name, jobs=len(theirs))

    def _on_refused(self, job_ids: Sequence[str], reason: str) -> None:
        for service in self.services.values():
            service.refuse(job_ids, reason)

    async def drain(self, grace_s: float) -> None:
        """Refuse new jobs, let running work and its webhooks end within ``grace_s``; leave or end the rest."""
        self.draining = True
        until = asyncio.get_running_loop().time() + grace_s
        await asyncio.gather(*(service.drain(grace_s) for service in self.services.values()))
        await self._webhooks.drain(max(1.0, until - asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Unload every model and close what was started."""
        self.draining = True
        await asyncio.gather(*(service.close() for service in self.services.values()))
        if self._lag_watch is not None:
            self._lag_watch.cancel()
            await asyncio.gather(self._lag_watch, return_exceptions=True)
        await self._webhooks.drain(0.0)
        if self._journal is not None:
            await self._journal.close()
        await self._fetcher.close()
        self._outputs.close()
        await self._store.close()
        self._children.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def load_handler(config: ServiceConfig) -> AnyHandler:
    """Import and build the handler that ``module:Class`` names.

    Raises:
        ConfigError: there is no such module or class, or it does not fulfil the contract; says what is wrong with it.
    """
    where = f"[services.{config.name}] handler"
    module_name, _, class_name = config.handler.partition(":")
    module = _import(module_name, where)
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [name for name, value in vars(module).items() if _is_handler(value)]
        others = nearest(class_name, classes) if classes else ", and no other handler"
        raise ConfigError(f"{where}: module {module_name!r} has no {class_name!r}{others}")
    what = f"{where}: {config.handler}"
    if not (isinstance(cls, type) and issubclass(cls, BatchHandler | StepHandler)):
        raise ConfigError(f"{what} is not a BatchHandler or a StepHandler")
    if inspect.isabstract(cls):
        raise ConfigError(f"{what} lacks one of its methods: {', '.join(sorted(cls.__abstractmethods__))}")
    _check_classes(cls, what)
    _check_options(cls, config)
    try:
        handler: AnyHandler = cls()
    except Exception as error:
        raise ConfigError(f"{what} cannot be built: {_reason(error)}") from error
    return handler


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        hint = "; a module of your own lies beside the settings file, or where the process was started" if own else ""
        raise ConfigError(f"{where}: cannot import {name!r}: {_reason(error)}{hint}") from error
    except Exception as error:  # whatever the author's module does
        raise ConfigError(f"{where}: cannot import {name!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong in an author's module, and in which of its lines."""
    text = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    return f"{text} ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else text


def _check_classes(cls: type[AnyHandler], what: str) -> None:
    """Refuse type parameters that are no attrs classes, and input fields whose names the wire has taken."""
    for place, name in enumerate(("Input", "Output")):
        given = getattr(cls, name, None)
        if given is None or not attrs.has(given):
            kind = "BatchHandler" if issubclass(cls, BatchHandler) else "StepHandler"
            seen = f"; as in class {cls.__name__}({kind}[Input, Output])" if given is None else f", not {_name(given)}"
            raise ConfigError(f"{what}: type parameter {place + 1}, its {name}, has to be an attrs class{seen}")
    for field in attrs.fields(cls.Input):
        if field.name in RESERVED_FIELDS:
            raise ConfigError(f"{what}: the input field {field.name!r} {RESERVED_FIELDS[field.name]}; rename it")


def _check_options(cls: type[AnyHandler], config: ServiceConfig) -> None:
    if cls.Options is None:
        return
    try:
        read_options(cls.Options, config.options)
    except ConfigError as error:
        raise ConfigError(f"[services.{config.name}] {error}") from None


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _is_handler(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BatchHandler | StepHandler) and not inspect.isabstract(value)


def _worker_id() -> str:
    """RunPod's name for this pod where there is one, else one of our own."""
    return os.environ.get("RUNPOD_POD_ID") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
