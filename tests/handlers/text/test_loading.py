"""Which engine a checkpoint gets."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[mistral]'")

from aiservices.errors import ServiceError
from aiservices.handlers.text import loading
from aiservices.handlers.text.checkpoint import Checkpoint, read_checkpoint
from aiservices.handlers.text.options import GenerationOptions
from tests.handlers.text.own.loading import MISTRAL
from tests.handlers.tiny_models import write_mistral


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(write_mistral(tmp_path_factory.mktemp("mistral")), MISTRAL)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that were tried; loading one makes nothing."""
    tried: list[str] = []

    def load(name: str, error: ServiceError | None = None) -> Any:
        def load_engine(*_arguments: Any) -> str:
            tried.append(name)
            if error is not None:
                raise error
            return name

        return load_engine

    monkeypatch.setattr(loading, "_load_own", load("own"))
    monkeypatch.setattr(loading, "_load_vllm", load("vllm", ServiceError("vLLM cannot load the model: too new")))
    return tried


def choose(checkpoint: Checkpoint, device: str, engine: Any) -> Any:
    return loading.load_engine(checkpoint, device, GenerationOptions(engine=engine))


def test_auto_takes_vllm_on_a_gpu_where_it_is_installed_and_works(
    checkpoint: Checkpoint, asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    with caplog.at_level(logging.WARNING):
        assert choose(checkpoint, "cuda", "auto") == "own"
    assert asked == ["vllm", "own"]
    assert "too new; going on with the engine of the package" in caplog.text
    assert choose(checkpoint, "cpu", "auto") == "own"
    assert choose(checkpoint, "cuda:1", "own") == "own"
    assert asked == ["vllm", "own", "own", "own"]


def test_who_asks_for_vllm_gets_it_or_an_error(
    checkpoint: Checkpoint, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    with pytest.raises(ServiceError, match="too new"):
        choose(checkpoint, "cpu", "vllm")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=r"not installed: pip install 'aiservices\[vllm\]'"):
        choose(checkpoint, "cuda", "vllm")
    assert choose(checkpoint, "cuda", "auto") == "own"
    assert asked == ["vllm", "own"]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed here")
def test_the_real_choice_on_this_machine_is_the_engine_of_the_package(checkpoint: Checkpoint) -> None:
    engine = loading.load_engine(checkpoint, "cpu", GenerationOptions())
    assert type(engine).__name__ == "OwnEngine"


def test_the_reason_of_a_failed_start_is_one_line(tmp_path: Path) -> None:
    from aiservices.handlers.text.vllm.error_log import ErrorLog

    log = ErrorLog()
    assert log.last_error() == ""
    file = log.config.with_name("errors.log")
    file.write_text(
        "ERROR core.py EngineCore failed to start.\n"
        "ERROR core.py Traceback (most recent call last):\n"
        "ERROR core.py   File 'x.py', line 3, in load\n"
        "ERROR core.py ValueError: No available memory for the cache blocks.\n"
        "ERROR core.py more\n"
    )
    assert log.last_error() == "No available memory for the cache blocks."
    log.close()
    assert not file.parent.exists()
