from __future__ import annotations

import gc
import threading
import weakref

import pytest

from aiservices.errors import ModelBroken, OutOfMemory
from aiservices.model import ModelThread
from aiservices.model.thread import forget_model, free_memory, keep_out_of_collections


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class AcceleratorError(RuntimeError):
    """Named as torch names its own."""


@pytest.fixture
def cheap_collections() -> None:
    """Here the collections are real."""


@pytest.fixture
def executor() -> ModelThread:
    return ModelThread("model-test")


def raising(error: BaseException) -> None:
    raise error


def test_calls_run_one_after_another_on_one_thread(executor: ModelThread) -> None:
    seen: list[tuple[int, str]] = []
    futures = [executor.submit(lambda n=n: seen.append((n, threading.current_thread().name))) for n in range(50)]  # type: ignore[misc]
    for future in futures:
        future.result(10)
    assert seen == [(n, "model-test") for n in range(50)]
    executor.stop()
    assert executor.join(10)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), OutOfMemory),
        (AcceleratorError("CUDA error: device-side assert triggered"), ModelBroken),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ModelBroken),
        (ValueError("mine"), ValueError),
        (SystemExit(3), RuntimeError),
    ],
)
def test_an_error_is_told_in_the_cores_words_and_the_thread_lives_on(
    executor: ModelThread, raised: BaseException, told: type[Exception]
) -> None:
    with pytest.raises(told) as caught:
        executor.submit(lambda: raising(raised)).result(10)
    assert type(caught.value) is told
    assert executor.submit(lambda: 7).result(10) == 7
    executor.stop()


def test_an_idle_thread_holds_on_to_nothing(executor: ModelThread) -> None:
    import gc
    import weakref

    class Batch:
        pass

    batch = Batch()
    watched = weakref.ref(batch)
    executor.submit(lambda held=batch: held).result(10)  # type: ignore[misc]
    del batch
    executor.submit(lambda: None).result(10)
    gc.collect()
    assert watched() is None
    executor.stop()


def test_stopping_what_never_started_is_harmless(executor: ModelThread) -> None:
    executor.stop()
    assert executor.join(0)


def test_what_a_model_loaded_is_kept_out_of_collections_until_it_is_unloaded() -> None:
    class Weights:
        pass

    weights = Weights()
    weights.itself = weights  # type: ignore[attr-defined]  # what only a collection frees
    gone = weakref.ref(weights)
    before = gc.get_freeze_count()
    keep_out_of_collections()
    assert gc.get_freeze_count() > before
    del weights
    gc.collect()
    assert gone() is not None
    free_memory()
    assert gone() is not None, "it may be a model's that runs"
    forget_model()
    assert gone() is None
    assert gc.get_freeze_count() > before, "the modules stay out"
    gc.unfreeze()
