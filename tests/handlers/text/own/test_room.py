"""Rows wait for room, and make way where memory runs out; what they become stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.errors import InvalidInput, OutOfMemory
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt, Sampling, fit_new_tokens
from aiservices.handlers.text.own.row import NO_ROOM
from tests.handlers.text.own.loading import load_engine, same_model, tokens_alone
from tests.handlers.text.own.test_engine import prompt, requests, tokens_of
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for
from tests.handlers.tiny_models import write_mistral


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_engine(folder)


@pytest.fixture(scope="module")
def alone(model: Any) -> list[tuple[int, ...]]:
    return tokens_alone(model, requests())


@pytest.mark.parametrize("limit", [128, 320, 1024])
def test_rows_wait_for_room_and_the_cache_stays_within_its_bound(
    model: Any, alone: list[tuple[int, ...]], limit: int
) -> None:
    engine = same_model(model, cache_tokens=limit)
    tasks = tasks_for(requests())
    engine.admit(tasks)
    most = []

    def look(step: int) -> None:
        layers = engine._cache.layers
        most.append(layers[0].keys.shape[0] * layers[0].keys.shape[2] if layers else 0)
        assert len(engine._running) <= max(1, limit // 64)

    assert tokens_of(step_to_end(engine, tasks, before_step=look)) == alone
    assert 64 <= max(most) <= limit
    told = [task.context.waits for task in tasks if isinstance(task.context, FakeContext)]
    assert told[0] == []
    assert [NO_ROOM, None] in told, "who waits is told so, and that it goes on"
    assert all(waits == [NO_ROOM, None] * (len(waits) // 2) for waits in told)


def test_a_row_that_grows_beyond_the_bound_makes_way_and_goes_on_with_its_tokens(model: Any) -> None:
    asked = [GenerationRequest(Prompt(prompt(seed, 50)), max_new_tokens=100) for seed in range(2)]
    asked[1] = attrs.evolve(asked[1], sampling=Sampling(1.2, seed=3))
    expected = tokens_alone(model, asked)
    engine = same_model(model, cache_tokens=256)
    tasks = tasks_for(asked)
    engine.admit(tasks)
    running = []

    def look(step: int) -> None:
        running.append(len(engine._running))

    results = step_to_end(engine, tasks, before_step=look)
    assert tokens_of(results) == expected
    assert 2 in running
    assert running[-1] == 1, "the newer one had to wait for the end of the older one"
    for task, result in zip(tasks, results, strict=True):
        context = task.context
        assert isinstance(context, FakeContext)
        assert isinstance(result, Generated)
        assert "".join(context.chunks) == result.text
        assert sum(amount for _, amount in context.counted) == len(result.token_ids)


def test_a_request_that_never_fits_is_refused_with_the_numbers(model: Any) -> None:
    engine = same_model(model, cache_tokens=128)
    assert engine.window == 128
    with pytest.raises(InvalidInput, match="a prompt of 200 tokens; the model takes at most 127"):
        fit_new_tokens(200, None, 512, engine.window, "$.prompt")
    task = tasks_for([GenerationRequest(Prompt(prompt(0, 120)), max_new_tokens=20)])[0]
    engine.admit([task])
    ((_, error),) = engine.step()
    assert isinstance(error, InvalidInput)
    assert not len(engine)


def out_of_memory(engine: Any, method: str, when: Callable[[], bool], seen: list[int] | None = None) -> None:
    """Let a method of the backbone run out of memory at times; ``seen`` gets how many rows there were each time."""
    import torch

    usual = getattr(engine._backbone, method)
    seen = [] if seen is None else seen

    def run(*arguments: Any) -> Any:
        if when():
            seen.append(len(engine._running))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(*arguments)

    setattr(engine._backbone, method, run)


@pytest.mark.parametrize("method", ["decode", "read"])
def test_out_of_memory_costs_the_newest_row_a_retry_and_nobody_an_answer(
    model: Any, alone: list[tuple[int, ...]], method: str
) -> None:
    engine = same_model(model)
    engine._prompts._chunk_tokens = 100
    failed: list[int] = []
    out_of_memory(engine, method, lambda: len(engine._running) > 3 and len(failed) < 5, failed)
    tasks = tasks_for(requests())
    engine.admit(tasks)
    assert tokens_of(step_to_end(engine, tasks)) == alone
    assert failed
    assert engine._cache.limit is None, "all of the room again once the rows have left"


def test_what_is_only_kept_to_save_time_goes_first(model: Any) -> None:
    from aiservices.handlers.text.own.prefix_cache import PrefixCache

    engine = same_model(model, prefixes=PrefixCache())
    same = [GenerationRequest(Prompt(prompt(3, 60)), max_new_tokens=20)] * 3
    engine.admit(tasks_for(same[:2]))
    engine.step()
    assert engine._prompts._prefixes._prefixes
    out_of_memory(engine, "decode", lambda: len(engine._running) == 2)
    engine.step()
    assert not engine._prompts._prefixes._prefixes
    engine.reset()


def test_the_newest_row_is_the_one_that_makes_way(model: Any) -> None:
    engine = same_model(model)
    tasks = tasks_for([attrs.evolve(request, max_new_tokens=30) for request in requests(4)])
    engine.admit(tasks)
    engine.step()
    out_of_memory(engine, "decode", lambda: len(engine._running) == 4)
    engine.step()
    assert [row.task for row in engine._running] == tasks[:3]
    engine.reset()


def test_out_of_memory_while_rows_join_costs_the_newest_a_retry(
    model: Any, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    engine = same_model(model)
    join, tried = engine._cache.join, []

    def refuse_many(prefilled: Any, rows: Sequence[int], lengths: Sequence[int]) -> None:
        tried.append(len(rows))
        if len(engine._cache.lengths) + len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        join(prefilled, rows, lengths)

    monkeypatch.setattr(engine._cache, "join", refuse_many)
    tasks = tasks_for(requests()[:6])
    engine.admit(tasks)
    assert tokens_of(step_to_end(engine, tasks)) == alone[:6]
    assert max(tried) > 2


def test_a_row_that_runs_out_of_memory_alone_fails_alone(model: Any, alone: list[tuple[int, ...]]) -> None:
    for method in ("decode", "read"):
        engine = same_model(model)
        out_of_memory(engine, method, lambda: True)
        tasks = tasks_for(requests()[:3])
        engine.admit(tasks)
        results = step_to_end(engine, tasks)
        assert all(isinstance(result, OutOfMemory) for result in results)
    assert tokens_of(generate(same_model(model), requests()[:3])) == alone[:3]


def test_buffers_that_grew_half_way_are_grown_again(model: Any, alone: list[tuple[int, ...]]) -> None:
    import torch

    from aiservices.handlers.text.own.slot_cache import SlotLayer

    engine = same_model(model)
    long = [GenerationRequest(Prompt(prompt(seed, 60)), max_new_tokens=20) for seed in range(3)]
    expected = tokens_alone(model, long)
    tasks = tasks_for(long)
    engine.admit(tasks)
    engine.step()
    resize, calls = SlotLayer.resize, []

    def fail_at_the_second_layer(layer: Any, *arguments: Any) -> None:
        calls.append(layer)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        resize(layer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlotLayer, "resize", fail_at_the_second_layer)
        assert tokens_of(step_to_end(engine, tasks)) == expected
    assert len(calls) > 2
