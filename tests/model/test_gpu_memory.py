"""The memory of GPUs as a scrape sees it: asked of torch's allocator alone, and only where a model uses one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from aiservices.metrics import DeviceMemory
from aiservices.model import gpu_memory


def put_torch(monkeypatch: pytest.MonkeyPatch, reserved: list[int], *, initialized: bool = True) -> None:
    """A torch with GPUs of which this process reserved so many bytes; a test machine has none."""
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: len(reserved),
        memory_allocated=lambda index: reserved[index] // 2,
        memory_reserved=lambda index: reserved[index],
        get_device_properties=lambda index: SimpleNamespace(total_memory=1000 + index),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


def test_only_gpus_that_this_process_uses_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    put_torch(monkeypatch, [0, 600])
    assert gpu_memory() == [DeviceMemory("cuda:1", allocated=300, reserved=600, total=1001)]


def test_a_gpu_that_nobody_uses_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    put_torch(monkeypatch, [600], initialized=False)
    assert gpu_memory() == []


def test_torch_is_not_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert gpu_memory() == []
    assert "torch" not in sys.modules
