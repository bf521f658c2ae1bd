"""What has to be seen to around torch: a broken torchaudio, threads of one core."""

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
