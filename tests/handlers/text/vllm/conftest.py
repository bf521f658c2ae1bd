"""vLLM for the tests of this folder: the real one where it is installed, its stand-in elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

REAL = find_spec("vllm") is not None


@pytest.fixture(scope="package", autouse=True)
def vllm() -> Iterator[None]:
    """Make ``import vllm`` work."""
    from tests.handlers.text.vllm import fake

    with contextlib.nullcontext() if REAL else fake.installed():
        yield
