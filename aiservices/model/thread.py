"""One model on one thread: load, work and unload run on it and nothing else does.

CUDA graphs, the intra-op thread count of torch and the state inside some models belong to a thread, so the thread lives
as long as the model. It is a daemon: a call that never returns must not keep the process from exiting.
"""

from __future__ import annotations

import gc
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from aiservices.errors import ModelBroken, OutOfMemory

T = TypeVar("T")

_Work = tuple[Callable[[], object], "Future[object]"]


class ModelThread:
    """Runs calls one after another on a thread of its own.

    Args:
        name: of the thread, for stack dumps.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Queue a call; the future holds its result or its exception, translated by :meth:`translate`."""
        future: Future[T] = Future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._calls.put((function, future))  # type: ignore[arg-type]  # a Future[T] takes what its function returns
        return future

    def stop(self) -> None:
        """Let the thread end after the calls queued so far. Does not wait."""
        if self._thread is not None:
            self._calls.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; return whether it did."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stack(self) -> str:
        """Return where the thread is now, as a traceback; empty if it does not run. Callable from any thread."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread is not None else None
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def translate(self, error: Exception) -> Exception:
        """Turn what a device library raised into the core's words and, out of memory, free the cache at once.

        Must run on the model's thread.
        """
        if _is_device_broken(error):
            return ModelBroken(f"the device failed and cannot be used again in this process: {_first_line(error)}")
        if _is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold the tensors
            free_memory()
            return OutOfMemory("the device ran out of memory on this job's batch; try again or send a smaller input")
        return error

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            function, future = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except CancelledError as error:  # a library's own would be taken for ours
                future.set_exception(RuntimeError(f"the model's code raised {error!r}"))
            except Exception as error:
                future.set_exception(self.translate(error))
            except BaseException as error:  # SystemExit in a library must not end the thread, nor reach the loop
                future.set_exception(RuntimeError(f"the model's code raised {error!r}"))
            del work, function, future  # an idle thread must not hold on to the last batch


def keep_out_of_collections() -> None:
    """Take what lives as long as the model out of garbage collections: a full one would halt every thread for long.

    The modules of transformers and torch alone are some 200 000 objects: 0.1 s a collection, measured.
    """
    gc.collect()
    gc.freeze()


def forget_model() -> None:
    """Give back the memory of a model that nobody holds any more. Must run on the model's thread."""
    gc.unfreeze()
    free_memory()
    gc.freeze()  # the modules and the other models stay


def free_memory() -> None:
    """Collect garbage and hand cached device memory back. Must run on the model's thread."""
    gc.collect()
    torch = sys.modules.get("torch")  # a service without torch must not import it for this
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "not enough memory" in str(error)


def _is_device_broken(error: Exception) -> bool:
    """Whether the CUDA context is lost: every later call in this process would fail, too."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return False
    return "AcceleratorError" in names or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
