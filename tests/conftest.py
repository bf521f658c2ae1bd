"""What every test gets: one torch thread, no stray environment, and an event loop that nothing may block."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before anything imports torch or a BLAS: several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx

import aiservices
from aiservices.model import thread

MAY_BLOCK = {
    "prometheus_client/process_collector.py": {"collect"},  # reads /proc, which is no disk
    "linecache.py": {"updatecache", "checkcache"},  # source lines of a traceback that is being written
    "aiservices/loops.py": {"_run"},  # a loop of its own is there so that it may
    "aiobotocore/session.py": {"_create_client"},  # reads its service's description; on a loop where nobody waits
    "<frozen importlib._bootstrap>": {"_find_and_load"},  # a first import; models import in their own thread
}

# Tests look at events (structlog.testing.capture_logs), never at lines; writing those would block the loop.
structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests pass the environment they want; a developer's own settings must not leak in."""
    for variable in [name for name in os.environ if name.startswith(("AISERVICES_", "RUNPOD_", "AWS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AISERVICES_JOURNAL_PATH", "off")  # a test that wants one names its own file


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail a test in whose event loop our code blocks (files, sockets, sleep); what may is listed in MAY_BLOCK."""
    with blockbuster_ctx(aiservices) as active:
        for function in active.functions.values():
            for file, names in MAY_BLOCK.items():
                function.can_block_in(file, names)
        yield active


class _NoCollections:
    """Stands in for :mod:`gc` where a service loads and unloads: beside a thousand imported modules that is dear."""

    def collect(self) -> None: ...

    def freeze(self) -> None: ...

    def unfreeze(self) -> None: ...


@pytest.fixture(autouse=True)
def cheap_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests the garbage collections of each load and unload; tests/model/test_thread.py has the real ones."""
    monkeypatch.setattr(thread, "gc", _NoCollections())
