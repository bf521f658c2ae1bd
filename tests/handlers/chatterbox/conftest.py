"""Tiny checkpoints, and handlers that have loaded them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox.speaking import HIGH, PLAIN, loaded


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        yield patch


@pytest.fixture(scope="module")
def checkpoint(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatterbox")
    tiny_chatterbox.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def voices_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    (folder / "anna.wav").write_bytes(HIGH)
    (folder / "anna.json").write_text(json.dumps({"description": "a hum", "language": "en"}))
    (folder / "readme.txt").write_text("not a voice")
    return folder


@pytest.fixture(scope="module")
def handler(checkpoint: Path, voices_dir: Path) -> Iterator[ChatterboxTextToSpeech]:
    handler = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    yield handler
    handler.unload()


@pytest.fixture(scope="module")
def marking(checkpoint: Path) -> Iterator[ChatterboxTextToSpeech]:
    """With watermark and loudness, as they are unless somebody turns them off."""
    handler = loaded(checkpoint)
    yield handler
    handler.unload()


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break: links to the weights, so that nothing large is copied."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path
