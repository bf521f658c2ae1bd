"""What a GPU needs told and prepared, as far as it can be seen without one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("torch") is None:
    pytest.skip("torch is not installed: scripts/install chatterbox", allow_module_level=True)

import torch

from aiservices.handlers.chatterbox.decoding import PaddedDecoder, _Shape
from aiservices.handlers.chatterbox.gpu import prepare_gpu

pytestmark = pytest.mark.chatterbox


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("device", "faster"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_only_a_gpu_multiplies_in_tf32(tf32: None, monkeypatch: pytest.MonkeyPatch, device: str, faster: bool) -> None:
    taken: list[str] = []
    monkeypatch.setattr("aiservices.handlers.chatterbox.gpu.take_device", taken.append)
    prepare_gpu(device)
    assert taken == [device]
    assert torch.backends.cuda.matmul.allow_tf32 is faster


class _Slots:
    dtype = torch.float32

    def __init__(self) -> None:
        self.lengths = [700, 20, 3]
        self.attention: list[torch.Tensor] = []

    def make_room(self) -> None:
        """There is room."""

    def decode(self, hidden: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
        return hidden + width


def test_every_shape_of_a_step_is_captured_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[tuple[int, int]] = []

    def noted(_: Any, shape: _Shape, width: int) -> None:
        captured.append((len(shape.hidden), width))

    monkeypatch.setattr(PaddedDecoder, "_capture", noted)
    slots: Any = _Slots()
    decoder = PaddedDecoder(slots, "cpu", (6, 900), graphs=True)
    decoder.prepare(8)
    assert captured[0] == (6, 900)
    assert sorted(captured) == sorted((count, width) for count in (1, 2, 4, 6) for width in (256, 512, 768, 900))
    shapes = dict(decoder._shapes)
    assert torch.equal(decoder.decode(torch.zeros(3, 8)), torch.full((3, 8), 768.0))
    assert decoder._shapes == shapes, "a shape was made that was not captured"
