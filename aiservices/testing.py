"""Run a handler as a real service in a test: validation, batching, streams, time limits, everything but HTTP.

::

    async def test_words_are_counted() -> None:
        async with serving(CountWords) as service:
            assert await service.run(text="one two three") == {"words": 3}
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiservices.config import service_config
from aiservices.errors import JobFailed
from aiservices.fetch import Fetcher
from aiservices.handler import Handler, MediaKind
from aiservices.jobs import Job, JobRequest, JobStatus
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config, FetchConfig
from aiservices.trace import Trace

WAIT_S = 60.0
"""How long :meth:`RunningService.run` waits for a job, loading included."""


class RunningService:
    """A service around the handler under test.

    Attributes:
        handler: the object that does the work.
        service: the whole service, for what is not offered here.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.handler: Handler[Any, Any] = service.handler

    def submit(self, **fields: Any) -> Job:
        """Accept a job and return at once.

        Args:
            fields: of the input, as a caller's JSON has them.

        Raises:
            InvalidInput: naming the field.
        """
        return self.service.submit(JobRequest(input=fields))

    async def run(self, **fields: Any) -> dict[str, Any]:
        """Run a job and return its output; files in it are base64 text, as on the wire.

        Raises:
            InvalidInput: naming the field.
            JobFailed: it ended in another way than COMPLETED; the text says how, and why.
        """
        job = self.submit(**fields)
        await job.wait_end(WAIT_S)
        if job.status is not JobStatus.COMPLETED or job.output is None:
            raise JobFailed(f"{job.status}: {job.error or self.service.reason or 'it took too long'}")
        return job.output.as_dict()

    async def stream(self, **fields: Any) -> list[Any]:
        """Run a job and return all that its stream held.

        Raises:
            InvalidInput: naming the field.
        """
        job = self.submit(**fields)
        await job.wait_end(WAIT_S)
        return job.read_stream()


class _Files(Fetcher):
    """Hands out the test's files; anything else is for the guard."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(FetchConfig())
        self._files = files

    async def fetch(
        self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None, trace: Trace | None = None
    ) -> bytes:
        if url in self._files:
            return self._files[url]
        return await super().fetch(url, field=field, kind=kind, max_bytes=max_bytes, trace=trace)


@contextlib.asynccontextmanager
async def serving(
    handler: type[Handler[Any, Any]], *, files: Mapping[str, bytes] | None = None, **settings: Any
) -> AsyncIterator[RunningService]:
    """Run a handler as the service ``test`` while the block lasts; its model loads behind the first job.

    Args:
        handler: a class at the top level of a module that can be imported.
        files: what ``context.fetch`` finds at these URLs, so that a test needs no network.
        settings: of the service, as in ``services.toml``: ``model``, ``options``, ``max_batch_size``, ``timeout_s`` …

    Raises:
        ConfigError: the handler cannot serve, or a setting is not one; says why.
    """
    where = f"{handler.__module__}:{handler.__qualname__}"
    service = service_config("test", {"handler": where, "device": "cpu", **settings}, Path(handler.__module__))
    registry = Registry(Config(profile="test", services={"test": service}), fetcher=_Files(files or {}))
    await registry.start()
    try:
        yield RunningService(registry.get("test"))
    finally:
        await registry.close()
