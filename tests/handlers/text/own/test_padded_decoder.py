"""Steps of few shapes, as CUDA graphs need them, computed on the CPU: the same tokens, and nothing read back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")
from aiservices.handlers.qwen import DescribeImage
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import GenerationRequest, Prompt
from tests.handlers.test_qwen import KINDS, items
from tests.handlers.test_qwen import tokens_alone as pictures_alone
from tests.handlers.text.own.loading import load_engine, tokens_alone
from tests.handlers.text.own.test_engine import prompt, requests, tokens_of
from tests.handlers.text_fakes import step_to_end, tasks_for
from tests.handlers.tiny_models import QwenKind, write_mistral, write_qwen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_engine(write_mistral(tmp_path_factory.mktemp("mistral")))


@pytest.fixture(scope="module")
def alone(model: Any) -> list[tuple[int, ...]]:
    return tokens_alone(model, requests())


def padded(model: Any, **settings: Any) -> Any:
    """Make an engine over the same weights that pads its steps."""
    from aiservices.handlers.text.own.engine import OwnEngine

    backbone = copy.copy(model._backbone)
    backbone.pad_steps(graphs=False)
    return OwnEngine(backbone, model._tokenizer, model._stop_ids, 1024, model._pictures, **settings)


def shapes(engine: Any) -> set[tuple[int, int]]:
    """Write down the rows and columns of each step."""
    decoder, seen = engine._backbone.padded, set()
    step = decoder._step

    def looking(tokens: Any, places: Any, deltas: Any, cache: Any) -> Any:
        mask = cache.mask()
        seen.add((len(tokens), mask.shape[-1]))
        return step(tokens, places, deltas, cache)

    decoder._step = looking
    return seen


@pytest.mark.parametrize("limit", [None, 1024, 320])
def test_padded_steps_give_the_same_tokens(model: Any, alone: list[tuple[int, ...]], limit: int | None) -> None:
    engine = padded(model, cache_tokens=limit)
    seen = shapes(engine)
    tasks = tasks_for(requests())
    joins = {0: tasks[:3], 2: tasks[3:4], 9: tasks[4:]}
    out = tasks[12:14]

    def before_step(step: int) -> None:
        engine.admit(joins.get(step, []))
        if step == 12:
            engine.evict(out)

    staying = [task for task in tasks if task not in out]
    expected = [tokens for task, tokens in zip(tasks, alone, strict=True) if task not in out]
    assert tokens_of(step_to_end(engine, staying, before_step=before_step)) == expected
    if limit is None:
        assert {rows for rows, _ in seen} <= {1, 2, 4, 8, 16}
        assert {columns for _, columns in seen} == {256}
    assert tokens_of(generate(engine, requests()[:3])) == alone[:3], "over buffers that held other rows"
    engine.reset()


def test_buffers_stay_until_they_are_too_small(model: Any) -> None:
    engine = padded(model)
    seen = shapes(engine)
    versions = set()
    for _ in range(3):
        generate(engine, requests()[:4])
        versions.add(engine._cache.version)
    assert len(versions) == 1
    long = [GenerationRequest(Prompt(prompt(5, 250)), max_new_tokens=20)]
    assert tokens_of(generate(engine, long)) == tokens_alone(model, long)
    assert {columns for _, columns in seen} == {256, 512}
    assert engine._cache.version not in versions
    engine.reset()
    assert engine._cache.layers == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_pictures_give_the_same_tokens(kind: QwenKind, tmp_path: Path) -> None:
    handler = DescribeImage()
    handler.load(write_qwen(tmp_path, kind), "cpu", {"dtype": "float32"})
    asked = items(handler, 6)
    expected = pictures_alone(handler, asked)
    assert tokens_of(generate(padded(handler.loaded.engine), asked)) == expected
    handler.unload()


def test_a_step_of_tensors_reads_nothing_back(model: Any) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class NothingBack(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            assert "_local_scalar_dense" not in name, "a value was read back"
            assert "nonzero" not in name, "a shape depends on values"
            return func(*args, **(kwargs or {}))

    mode: Any = NothingBack
    engine = padded(model)
    decoder = engine._backbone.padded
    step, checked = decoder._step, []

    def checking(*arguments: Any) -> Any:
        with mode():
            checked.append(1)
            return step(*arguments)

    decoder._step = checking
    generate(engine, requests()[:2])
    assert checked
    with pytest.raises(AssertionError, match="read back"), mode():
        torch.ones(1).item()


class _Graph:
    """What capturing makes: runs the step again, at the same addresses."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.replays = 0

    def replay(self) -> Any:
        self.replays += 1
        return self.run()


def test_a_shape_is_captured_once_it_is_met_often_and_again_over_new_buffers(
    model: Any, alone: list[tuple[int, ...]]
) -> None:
    engine = padded(model)
    decoder, graphs = engine._backbone.padded, []
    decoder._graphs = True

    def capture(run: Any) -> _Graph:
        graphs.append(_Graph(run))
        return graphs[-1]

    decoder._capturer.capture = capture
    assert tokens_of(generate(engine, requests())) == alone
    assert {columns for _, columns in decoder._shapes} == {256}
    first = len(graphs)
    assert 1 <= first <= 5
    assert tokens_of(generate(engine, requests())) == alone
    assert len(graphs) - first <= 5 - first, "shapes that were captured are replayed"
    assert sum(graph.replays for graph in graphs) > 40
    long = [GenerationRequest(Prompt(prompt(5, 300)), max_new_tokens=20)]
    assert tokens_of(generate(engine, long)) == tokens_alone(model, long)
    assert graphs[-1].replays > 10


def test_steps_go_on_uncaptured_where_capturing_fails(model: Any, alone: list[tuple[int, ...]]) -> None:
    engine = padded(model)
    decoder, tried = engine._backbone.padded, []
    decoder._graphs = True

    def capture(run: Any) -> None:
        tried.append(run)

    decoder._capturer.capture = capture
    assert tokens_of(generate(engine, requests())) == alone
    assert len(tried) == 1
