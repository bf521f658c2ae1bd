"""What has to be seen to around torch: a broken torchaudio, threads of one core, types, devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

TORCHAUDIO = {
    "__init__.py": "from . import _extension\nfrom . import functional\n",
    "_extension/__init__.py": "from .utils import _load_lib\n_IS_TORCHAUDIO_EXT_AVAILABLE = _load_lib('x')\n",
    "_extension/utils.py": "def _load_lib(lib):\n    raise OSError('libcudart.so.13: no such file')\n",
    "functional.py": (
        "from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align\n"
        "assert not _IS_TORCHAUDIO_EXT_AVAILABLE\n"
        "@fail_if_no_align\ndef align():\n    pass\n"
    ),
}


@pytest.fixture
def broken_torchaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, text in TORCHAUDIO.items():
        file = tmp_path / "torchaudio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchaudio"}
    for name in before:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_a_torchaudio_that_does_not_load_is_imported_without_its_extension(broken_torchaudio: None) -> None:
    pytest.importorskip("torch")
    from aiservices.handlers.torch_runtime import prepare_torch

    prepare_torch()
    prepare_torch()
    torchaudio = sys.modules["torchaudio"]
    with pytest.raises(RuntimeError, match="align needs torchaudio's compiled extension"):
        torchaudio.functional.align()


@pytest.fixture
def two_cores() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def test_threads_of_one_core_leave_the_others_theirs(two_cores: None) -> None:
    import torch

    from aiservices.handlers.torch_runtime import one_core_threads

    pool = one_core_threads(2, "test")
    assert [pool.submit(torch.get_num_threads).result() for _ in range(2)] == [1, 1]
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as another_thread:
        assert another_thread.submit(torch.get_num_threads).result() == 2
    pool.shutdown()


@pytest.mark.parametrize(
    ("bfloat16", "amx", "onednn", "expected"),
    [
        (True, False, True, "bfloat16"),
        (False, True, True, "bfloat16"),
        (False, False, True, "float32"),
        (True, True, False, "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, amx: bool, onednn: bool, expected: str
) -> None:
    torch = pytest.importorskip("torch")
    from aiservices.handlers.torch_runtime import resolve_dtype

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert resolve_dtype("auto", "cpu") is getattr(torch, expected)
    assert resolve_dtype("auto", "cuda:1") is torch.bfloat16
    assert resolve_dtype("float16", "cpu") is torch.float16


@pytest.mark.parametrize(("device", "calls"), [("cpu", []), ("cuda", ["stream"]), ("cuda:1", [1, "stream"])])
def test_a_thread_takes_its_device_and_a_stream(
    monkeypatch: pytest.MonkeyPatch, device: str, calls: list[int | str]
) -> None:
    torch = pytest.importorskip("torch")
    from aiservices.handlers.torch_runtime import take_device

    said: list[int | str] = []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "set_stream", said.append)
    try:
        take_device(device)
        assert said == calls
        assert torch.backends.cuda.cudnn_sdp_enabled() == (before and device == "cpu")
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
