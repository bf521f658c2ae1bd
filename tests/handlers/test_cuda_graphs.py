"""Capturing on a device that is not there: the order of things, and what happens where a capture goes wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'aiservices[qwen]'")
import torch

from aiservices.handlers.cuda_graphs import Capturer
from aiservices.handlers.torch_runtime import capture_lock


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


class _Device:
    """Stands in for torch.cuda: what runs inside a capture is remembered, and run again by a replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: list[tuple[object, str]] = []
        self.refuses = False
        self.replayed = 0
        self.spoils = False
        self.state = torch.zeros(3)
        for name, stand_in in {
            "Stream": _Stream,
            "current_stream": _Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "graph_pool_handle": object,
            "CUDAGraph": lambda: self,
            "graph": self._graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    @contextlib.contextmanager
    def _graph(self, graph: Any, *, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_lock._is_owned()  # type: ignore[attr-defined]  # a lock of threading, which has no types for it
        self.modes.append((pool, capture_error_mode))
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    def replay(self) -> None:
        self.replayed += 1
        self.run()
        if self.spoils:
            self.out += 1

    def run(self) -> torch.Tensor:
        self.out = getattr(self, "out", torch.zeros(3))
        return self.out.copy_(self.state * 2)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _Device:
    return _Device(monkeypatch)


def test_a_replay_computes_from_what_its_inputs_hold_now(device: _Device) -> None:
    capturer = Capturer()
    captured = capturer.capture(device.run)
    assert captured is not None
    device.state += 2
    assert captured.replay().tolist() == [4, 4, 4]
    assert capturer.capture(device.run) is not None
    pools = {pool for pool, _ in device.modes}
    assert len(pools) == 1, "the graphs of a model share memory"
    assert {mode for _, mode in device.modes} == {"thread_local"}


def test_what_cannot_be_captured_is_said_once_and_left_uncaptured(
    device: _Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.refuses = True
    with caplog.at_level(logging.WARNING):
        assert Capturer().capture(device.run) is None
    assert "could not be captured" in caplog.text


def test_a_replay_that_gives_something_else_is_not_used(device: _Device, caplog: pytest.LogCaptureFixture) -> None:
    device.spoils = True
    with caplog.at_level(logging.WARNING):
        assert Capturer().capture(device.run) is None
    assert "differs from what was captured" in caplog.text
    assert device.replayed == 1
