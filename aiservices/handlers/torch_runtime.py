"""Make torch and transformers importable and give their memory back; torch itself is imported when asked for.

Whatever imports transformers calls :func:`prepare_torch` first, on the model's own thread.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
"""Type of weights in a service's options; see :func:`resolve_dtype`."""

import_lock = threading.RLock()
"""Hold it while importing torch, transformers or what imports them: several models load at once, each on its thread,
and two threads inside one large package see each other's half-made modules."""

capture_lock = threading.RLock()
"""Hold it while capturing a CUDA graph: one capture disturbs another, whichever service's it is."""


def prepare_torch(cpu_threads: int | None = None) -> None:
    """Import torch and see to it that transformers can be imported after it. Callable from any thread, again and again.

    transformers imports torchaudio whenever it is installed. Beside a torch of another build (a CPU build, another
    CUDA major) torchaudio's compiled extension does not load, and then no transformers module does either. Only
    torchaudio's Python parts are of use here, so the extension is then declared absent, which torchaudio knows.

    Args:
        cpu_threads: how many threads torch's CPU kernels use when called from this thread; None leaves it as it is.
    """
    with import_lock:
        import torch

        if cpu_threads is not None:
            torch.set_num_threads(cpu_threads)
        if "torchaudio" not in sys.modules and find_spec("torchaudio") is not None:
            _import_torchaudio()


def _import_torchaudio() -> None:
    try:
        importlib.import_module("torchaudio")
    except OSError:
        _forget("torchaudio")
        sys.modules["torchaudio._extension"] = _absent_extension()
        importlib.import_module("torchaudio")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _absent_extension() -> types.ModuleType:
    """Stand in for ``torchaudio._extension`` with what it says of itself where its ``lib`` folder is missing."""

    def load_nothing(_library: str) -> bool:
        return False

    def fail_if_no_align(function: Any) -> Any:
        def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which does not load here")

        return refuse

    extension = types.ModuleType("torchaudio._extension")
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        _load_lib=load_nothing,
        fail_if_no_align=fail_if_no_align,
    )
    return extension


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Start threads whose kernels use one core each: what shares several cores waits for all of them.

    Call it on the thread whose number of cores is to stay.

    Args:
        count: how many.
        name: what they are called, with a number behind it.
    """
    import torch

    def begin() -> None:
        torch.get_num_threads()  # or torch would set the thread up later, with what was said last by any thread
        torch.set_num_threads(1)

    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, initializer=begin)
    together = threading.Barrier(count)
    list(pool.map(lambda _: together.wait(), range(count)))
    torch.set_num_threads(usual)  # said last: threads to come begin with it
    return pool


def resolve_dtype(name: DtypeName, device: str) -> torch.dtype:
    """Turn the ``dtype`` option into torch's.

    ``auto`` is bfloat16 on CUDA and on CPUs that multiply it (AVX512-bf16 or AMX), and float32 elsewhere.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") or _cpu_multiplies_bfloat16() else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def take_device(device: str) -> None:
    """Give the calling thread a CUDA device and a stream of its own; nothing to do for a CPU.

    cuDNN's attention is turned off: torch 2.13 asks it first on Hopper and Blackwell, and it plans anew for each length
    of the keys, 23 to 37 ms of the host's time that a decoding step of another length takes each.
    """
    if not device.startswith("cuda"):
        return
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    index = torch.device(device).index
    if index is not None:
        torch.cuda.set_device(index)
    torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _cpu_multiplies_bfloat16() -> bool:
    """Tell whether oneDNN finds instructions for bfloat16; on other CPUs it converts, which is slower than float32."""
    import torch

    onednn: Any = torch.backends.mkldnn
    known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(known and onednn.is_available())


def free_memory(device: str) -> None:
    """Collect what is unreachable and hand cached device memory back to the driver."""
    gc.collect()
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()
