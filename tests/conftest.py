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

# Tests look at events (structlog.testing.capture_logs), never at lines; writing those would block the loop.
structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests pass the environment they want; a developer's own settings must not leak in."""
    for variable in [name for name in os.environ if name.startswith(("AISERVICES_", "RUNPOD_", "AWS_"))]:
        monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail a test whose event loop runs blocking code of ours (files, sockets, sleep).

    A call that is known to be short is allowed in one place: ``blockbuster.functions["os.stat"].can_block_in(…)``.
    """
    with blockbuster_ctx(aiservices) as active:
        yield active
