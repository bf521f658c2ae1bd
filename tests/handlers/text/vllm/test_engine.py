"""vLLM behind the contract of a text engine: its rows are those of the package's own engine."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[mistral]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.errors import JobFailed, ModelBroken
from aiservices.handlers.listing import DEFAULT_CATEGORIES, build_schema
from aiservices.handlers.text.checkpoint import read_checkpoint
from aiservices.handlers.text.engine import generate
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt, Sampling
from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_tokens import read_tokenizer
from aiservices.handlers.text.options import GenerationOptions
from tests.handlers.json_schemas import check, random_schema
from tests.handlers.text.own.loading import MISTRAL, load_engine, tokens_alone
from tests.handlers.text.own.test_engine import prompt
from tests.handlers.text.vllm.conftest import REAL
from tests.handlers.text_fakes import FakeContext, step_to_end, tasks_for
from tests.handlers.tiny_models import write_mistral

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300 if REAL else 60),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

ANSWERS = 500 if REAL else 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("mistral"), head_dim=32)


def load(folder: Path, **options: Any) -> Any:
    from aiservices.handlers.text.vllm import loading

    options = {"dtype": "float32", "cache_gib": 0.125, **options}
    return loading.load_engine(read_checkpoint(folder, MISTRAL), "cpu", GenerationOptions(**options), None, 1)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Any]:
    engine = load(folder)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Any) -> Iterator[Any]:
    yield shared
    assert not len(shared), "a test left rows behind"


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    return load_engine(folder)


def requests(engine: Any, count: int = 12) -> list[GenerationRequest]:
    """Different prompts, lengths and limits."""
    return [
        GenerationRequest(engine.render(prompt(seed, 4 + 11 * seed % 70)), max_new_tokens=6 + 7 * seed % 40)
        for seed in range(count)
    ]


@pytest.fixture(scope="module")
def alone(own: Any) -> list[tuple[int, ...]]:
    """What the package's own engine makes of each of :func:`requests`."""
    return tokens_alone(own, requests(own))


def tokens_of(results: list[Generated | Exception]) -> list[tuple[int, ...]]:
    return [result.token_ids if isinstance(result, Generated) else () for result in results]


def test_greedy_tokens_are_those_of_the_own_engine(engine: Any, own: Any, alone: list[tuple[int, ...]]) -> None:
    results = generate(engine, requests(engine))
    assert [result.token_ids for result in results] == alone
    assert [result.usage.prompt_tokens for result in results] == [len(r.prompt.token_ids) for r in requests(engine)]
    assert [result.finish_reason for result in results] == [r.finish_reason for r in generate(own, requests(own))]


def test_rows_join_late_and_leave_early_without_a_trace(engine: Any, alone: list[tuple[int, ...]]) -> None:
    tasks = tasks_for(requests(engine))
    joins = {0: tasks[:3], 2: tasks[3:8], 4: tasks[8:]}
    out = [tasks[2], tasks[5], tasks[10]]

    def before_step(step: int) -> None:
        engine.admit(joins.get(step, []))
        if step == 5:
            engine.evict(out)
            engine.evict(out)  # a second time is ignored

    staying = [task for task in tasks if task not in out]
    assert tokens_of(step_to_end(engine, staying, before_step=before_step)) == [
        alone[tasks.index(task)] for task in staying
    ]


def test_the_last_row_may_be_evicted_and_others_come_after_it(engine: Any, alone: list[tuple[int, ...]]) -> None:
    (task,) = tasks_for([attrs.evolve(requests(engine)[1], max_new_tokens=400)])
    engine.admit([task])
    engine.step()
    engine.evict([task])
    assert len(engine) == 0
    assert engine.step() == []
    assert generate(engine, requests(engine)[:1])[0].token_ids == alone[0]


def test_a_seed_repeats_the_answer_in_any_company(engine: Any) -> None:
    sampled = [
        attrs.evolve(request, sampling=Sampling(1.3, 1.0 if n % 3 else 0.8, n % 2 * 30, seed=n))
        for n, request in enumerate(requests(engine))
    ]
    together = [result.token_ids for result in generate(engine, sampled)]
    assert together == [generate(engine, [request])[0].token_ids for request in sampled]
    reseeded = attrs.evolve(sampled[5], sampling=sampled[5].sampling.but(seed=99))
    assert together[5] != generate(engine, [reseeded])[0].token_ids


def test_penalties_are_those_of_the_own_engine(engine: Any, own: Any) -> None:
    asked = Sampling(repetition_penalty=1.4)
    request = attrs.evolve(requests(engine)[4], sampling=asked, max_new_tokens=25)
    (expected,) = generate(own, [attrs.evolve(requests(own)[4], sampling=asked, max_new_tokens=25)])
    (penalised,) = generate(engine, [request])
    assert penalised.token_ids == expected.token_ids


def test_a_presence_penalty_is_that_of_the_own_engine(engine: Any, own: Any) -> None:
    asked = Sampling(presence_penalty=2.0)
    request = attrs.evolve(requests(engine)[4], sampling=asked, max_new_tokens=25)
    (expected,) = generate(own, [attrs.evolve(requests(own)[4], sampling=asked, max_new_tokens=25)])
    (penalised,) = generate(engine, [request])
    assert penalised.token_ids == expected.token_ids


def test_a_stop_text_ends_the_answer_before_it_and_the_row_leaves(engine: Any) -> None:
    asked = [attrs.evolve(request, max_new_tokens=40) for request in requests(engine, 4)]
    whole = generate(engine, asked)
    stop = whole[1].text[9:12]
    (task, *others) = tasks = tasks_for([attrs.evolve(asked[1], stop=(stop,)), asked[0], asked[2]])
    engine.admit(tasks)
    stopped, *rest = step_to_end(engine, [task, *others])
    assert isinstance(stopped, Generated)
    assert (stopped.text, stopped.finish_reason) == (whole[1].text[: whole[1].text.index(stop)], "stop")
    assert len(stopped.token_ids) < 40
    assert tokens_of(rest) == [whole[0].token_ids, whole[2].token_ids]
    assert isinstance(task.context, FakeContext)
    assert "".join(task.context.chunks) == stopped.text


def test_an_end_token_stops_the_row_and_stays_out_of_the_text(engine: Any, alone: list[tuple[int, ...]]) -> None:
    end = alone[2][5]
    assert end not in alone[2][:5]
    before, engine._stop_ids = engine._stop_ids, frozenset({2, end})
    try:
        (result,) = generate(engine, [requests(engine)[2]])
    finally:
        engine._stop_ids = before
    assert result.finish_reason == "stop"
    assert result.token_ids == alone[2][:6]
    assert result.text == engine._tokenizer.decode(list(alone[2][:5])).rstrip("\ufffd")


def test_the_stream_joins_up_to_the_text_and_progress_only_grows(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.handlers.text.row.EMIT_EVERY_S", 0.0)
    tasks = tasks_for(requests(engine))
    engine.admit(tasks)
    for task, result in zip(tasks, step_to_end(engine, tasks), strict=True):
        assert isinstance(result, Generated)
        assert isinstance(task.context, FakeContext)
        assert "".join(task.context.chunks) == result.text
        assert task.context.fractions == sorted(task.context.fractions)
        assert len(task.context.fractions) > 1
        assert sum(amount for _, amount in task.context.counted) == len(result.token_ids)


def test_every_listing_is_whole_within_its_budget(engine: Any, folder: Path) -> None:
    checkpoint = read_checkpoint(folder, MISTRAL)
    grammars = read_tokenizer(checkpoint.chat.backend, engine.vocabulary, checkpoint.stop_ids)
    categories = [DEFAULT_CATEGORIES, ("Tea", "Größe L", 'Say "hi"', "back\\slash")]
    compiled = [Grammar.compile(build_schema(names), grammars) for names in categories]
    asked = []
    for seed in range(ANSWERS):
        grammar = compiled[seed % 2]
        asked.append(
            GenerationRequest(
                engine.render(prompt(seed, 10 + seed % 30)),
                max_new_tokens=grammar.least_tokens + seed % 90,
                sampling=Sampling(1.5, seed=seed),
                grammar=grammar,
            )
        )
    for number, (request, result) in enumerate(zip(asked, generate(engine, asked), strict=True)):
        listing = json.loads(result.text)
        assert list(listing) == ["title", "description", "keywords", "category"]
        assert listing["category"] in categories[number % 2]
        assert 3 <= len(listing["keywords"]) <= 8
        assert 1 <= len(listing["title"]) <= 80
        assert 1 <= len(listing["description"]) <= 600
        assert len(result.token_ids) <= request.max_new_tokens + 1


def test_answers_of_any_schema_are_whole_within_their_budget(engine: Any, folder: Path) -> None:
    checkpoint = read_checkpoint(folder, MISTRAL)
    grammars = read_tokenizer(checkpoint.chat.backend, engine.vocabulary, checkpoint.stop_ids)
    asked, schemas = [], []
    for seed in range(ANSWERS):
        dice = random.Random(seed)
        schemas.append(random_schema(dice))
        grammar = Grammar.compile(schemas[-1], grammars)
        asked.append(
            GenerationRequest(
                engine.render(prompt(seed, 10 + seed % 30)),
                max_new_tokens=grammar.least_tokens + dice.choice((0, 5, 40)),
                sampling=Sampling(1.5, seed=seed),
                grammar=grammar,
            )
        )
    for request, result, schema in zip(asked, generate(engine, asked), schemas, strict=True):
        check(result.text, schema)
        assert len(result.token_ids) <= request.max_new_tokens + 1


def test_a_row_that_vllm_refuses_fails_alone(engine: Any, alone: list[tuple[int, ...]]) -> None:
    asked = requests(engine)[:3]
    asked[1] = attrs.evolve(asked[1], sampling=Sampling(1.0, top_p=7.0))
    tasks = tasks_for(asked)
    engine.admit(tasks)
    results = step_to_end(engine, tasks)
    assert isinstance(results[1], JobFailed)
    assert "top_p" in str(results[1])
    assert tokens_of([results[0], results[2]]) == [alone[0], alone[2]]


def test_reset_forgets_every_row(engine: Any, alone: list[tuple[int, ...]]) -> None:
    engine.admit(tasks_for(requests(engine)))
    engine.step()
    engine.reset()
    assert len(engine) == 0
    assert generate(engine, requests(engine)[:1])[0].token_ids == alone[0]


def test_a_shorter_context_is_the_window(folder: Path) -> None:
    engine = load(folder, context_tokens=128)
    assert engine.window == 128
    tokens = [1] * 200
    content = {"type": "token", "prompt_token_ids": tokens}  # as an engine with a longer context renders it
    (long,) = tasks_for([GenerationRequest(Prompt(tokens, content=content), max_new_tokens=5)])
    engine.admit([long])
    (result,) = step_to_end(engine, [long])
    assert isinstance(result, JobFailed)
    engine.close()


def test_a_killed_process_breaks_the_model_with_the_reason(folder: Path) -> None:
    engine = load(folder)
    (task,) = tasks_for([attrs.evolve(requests(engine)[0], max_new_tokens=1500)])
    engine.admit([task])
    engine.step()
    for process in engine._processes:
        os.kill(process.pid, signal.SIGKILL) if REAL else process.kill()
    with pytest.raises(ModelBroken, match=r"the engine's process ended: exit status -9"):
        step_to_end(engine, [task])
    engine.reset()
    with pytest.raises(ModelBroken):
        engine.admit(tasks_for(requests(engine)[:1]))
    engine.close()
