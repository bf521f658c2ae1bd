"""Our T3 loop beside the library's own: the same tokens alone, together, joining late, and over fixed buffers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import attrs
import pytest

from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox import judging

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

tiny_chatterbox.import_library()

import torch  # noqa: E402 - behind the guard of the import above

from aiservices.errors import JobFailed  # noqa: E402
from aiservices.handlers.chatterbox.sampling import Sampling  # noqa: E402
from aiservices.handlers.chatterbox.t3 import T3Engine  # noqa: E402
from aiservices.handlers.chatterbox.t3_rows import SPEECH_TOKENS, Draw, T3Request  # noqa: E402

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

MAX_TOKENS = 60
VARIANTS = ("english", "multilingual", "turbo", "nano")


@attrs.frozen(eq=False)
class Case:
    """One request as both loops get it."""

    seed: int
    letters: int
    cfg_weight: float
    exaggeration: float
    sampling: Sampling

    @property
    def speaker(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 100)
        return torch.nn.functional.normalize(torch.randn(1, 256, generator=generator))

    @property
    def prompt(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 200)
        return torch.randint(0, SPEECH_TOKENS, (1, 80 + 9 * self.seed), generator=generator)

    @property
    def text(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 300)
        return [255, *torch.randint(3, 60, (self.letters,), generator=generator).tolist(), 0]


GREEDY = Sampling(min_p=1.0, repetition_penalty=1.2)
"""Both loops take the likeliest token: no other has the whole of its probability."""

CASES = [
    Case(0, 5, 0.5, 0.5, Sampling()),
    Case(1, 40, 0.0, 1.2, Sampling(temperature=1.0, repetition_penalty=1.0, min_p=0.0, top_p=0.9)),
    Case(2, 17, 1.0, 0.0, Sampling(temperature=1.4, repetition_penalty=2.0)),
    Case(3, 90, 0.3, 0.5, GREEDY),
    Case(4, 23, 0.0, 0.7, GREEDY),
    Case(5, 11, 0.5, 2.0, Sampling(min_p=0.2, top_p=0.8)),
]
TURBO = [
    attrs.evolve(
        case, cfg_weight=0.0, sampling=attrs.evolve(case.sampling, min_p=0.0, top_k=(1000, 20, 1)[case.seed % 3])
    )
    for case in CASES
]


@pytest.fixture(scope="module", autouse=True)
def patch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        loop: Any = importlib.import_module("chatterbox.models.t3.t3")
        patch.setattr(loop, "tqdm", partial(loop.tqdm, disable=True))
        judging.as_corrected(patch)
        yield
    model.cache_clear()
    expected.cache_clear()


@cache
def model(variant: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_chatterbox.make_t3(variant)


@cache
def expected(variant: str) -> list[list[int]]:
    """What the library says to each case, on a model of its own: it changes what it runs on."""
    theirs = model(variant) if variant in tiny_chatterbox.BACKBONES else tiny_copy(variant)
    return [theirs_alone(theirs, case) for case in cases(variant)]


def tiny_copy(variant: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_chatterbox.make_t3(variant)


def cases(variant: str) -> Sequence[Case]:
    return TURBO if variant in tiny_chatterbox.BACKBONES else CASES


def theirs_alone(t3: Any, case: Case) -> list[int]:
    tts = tiny_chatterbox.import_library()
    cond = tts.T3Cond(
        speaker_emb=case.speaker,
        cond_prompt_speech_tokens=case.prompt,
        emotion_adv=case.exaggeration * torch.ones(1, 1, 1),
    )
    how = case.sampling
    common = {"temperature": how.temperature, "top_p": how.top_p, "repetition_penalty": how.repetition_penalty}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        if t3.is_gpt:
            text = torch.tensor([case.text])
            # Its loop draws one token before it begins to count.
            made = t3.inference_turbo(cond, text, top_k=how.top_k, max_gen_len=MAX_TOKENS - 1, **common)
        else:
            text = torch.tensor([case.text] * 2)  # of one row its loop dies where cfg_weight is 0
            made = t3.inference(
                t3_cond=cond,
                text_tokens=text,
                max_new_tokens=MAX_TOKENS,
                min_p=how.min_p,
                cfg_weight=case.cfg_weight,
                **common,
            )
    return [token for token in made[0].tolist() if token < SPEECH_TOKENS]


def engine(variant: str, **options: Any) -> T3Engine:
    tts = tiny_chatterbox.import_library()
    judged = variant == "multilingual"
    return T3Engine(model(variant), tts.T3Cond, "cpu", capacity=8, judged=judged, **options)


def request(ours: T3Engine, case: Case, max_tokens: int = MAX_TOKENS) -> T3Request:
    condition = ours.embedding.condition(case.speaker, case.prompt, case.exaggeration)
    return T3Request(condition, case.text, case.cfg_weight, case.sampling, case.seed, max_tokens)


def run(ours: T3Engine, first: Sequence[T3Request], late: Sequence[T3Request] = ()) -> list[list[int]]:
    """Let ``first`` join together and the late ones one by one, four steps apart."""
    waiting, draws = list(late), dict[T3Request, Draw | Exception]()
    ours.join(first)
    for number in range(1, 10 * MAX_TOKENS):
        draws.update(ours.step())
        if waiting and number % 4 == 0:
            ours.join([waiting.pop(0)])
        if not len(ours) and not waiting:
            break
    made = [draws[request] for request in (*first, *late)]
    assert all(isinstance(draw, Draw) for draw in made), made
    return [draw.tokens for draw in made if isinstance(draw, Draw)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"fixed_columns": 512}], ids=["growing", "fixed"])
def test_each_row_says_what_the_library_says(variant: str, options: dict[str, Any]) -> None:
    ours, wanted = engine(variant, **options), expected(variant)
    requests = [request(ours, case) for case in cases(variant)]
    assert len({tuple(tokens) for tokens in wanted}) == len(wanted)
    assert [run(ours, [one])[0] for one in requests] == wanted
    assert run(ours, [request(ours, case) for case in cases(variant)]) == wanted
    requests = [request(ours, case) for case in cases(variant)]
    assert run(ours, requests[:2], requests[2:]) == wanted


def test_a_voice_is_embedded_as_the_library_does_without_its_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    case, tts = CASES[2], tiny_chatterbox.import_library()
    cond = tts.T3Cond(speaker_emb=case.speaker, cond_prompt_speech_tokens=case.prompt, emotion_adv=torch.zeros(1, 1, 1))
    with torch.inference_mode():
        theirs = tiny_copy("english").prepare_conditioning(cond)[0]
    monkeypatch.setattr(torch.backends.cuda, "sdp_kernel", None)  # it changes how every thread attends
    ours = engine("english").embedding.condition(case.speaker, case.prompt, case.exaggeration)
    assert torch.equal(ours, theirs)


def test_a_row_that_leaves_does_not_disturb_the_others() -> None:
    ours, wanted = engine("english"), expected("english")
    requests = [request(ours, case) for case in CASES]
    ours.join(requests)
    for _ in range(5):
        assert ours.step() == []
    ours.leave([requests[0], requests[3]])
    draws = dict[T3Request, Draw | Exception]()
    while len(ours):
        draws.update(ours.step())
    assert set(draws) == {requests[index] for index in (1, 2, 4, 5)}
    for index in (1, 2, 4, 5):
        draw = draws[requests[index]]
        assert isinstance(draw, Draw)
        assert (draw.tokens, draw.ended) == (wanted[index], True)


def test_a_row_that_does_not_end_is_cut_and_says_so() -> None:
    ours = engine("english")
    ours.join([request(ours, CASES[0], max_tokens=7)])
    outcomes = [outcome for _ in range(7) for outcome in ours.step()]
    draw = outcomes[0][1]
    assert isinstance(draw, Draw)
    assert (draw.tokens, draw.ended, len(ours)) == (expected("english")[0][:7], False, 0)


def test_a_row_that_is_no_number_fails_alone() -> None:
    ours, wanted = engine("english"), expected("english")
    good, bad = request(ours, CASES[1]), request(ours, CASES[0])
    bad = attrs.evolve(bad, condition=bad.condition.clone().fill_(float("nan")))
    draws = dict[T3Request, Draw | Exception]()
    ours.join([bad, good])
    while len(ours):
        draws.update(ours.step())
    assert isinstance(draws[bad], JobFailed)
    draw = draws[good]
    assert isinstance(draw, Draw)
    assert draw.tokens == wanted[1]
    assert run(ours, [request(ours, CASES[0])]) == [wanted[0]]  # the bad row's states are gone


def test_the_global_generator_is_left_alone() -> None:
    ours, before = engine("english"), torch.random.get_rng_state()
    run(ours, [request(ours, CASES[0])])
    assert torch.equal(torch.random.get_rng_state(), before)
