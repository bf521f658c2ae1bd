"""Our S3Gen beside the library's own: the same samples alone and padded together with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import Samples

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

tiny_chatterbox.import_library()

import torch  # noqa: E402 - behind the guard of the import above

from aiservices.handlers.chatterbox.flow import GenVoice, SoundRequest  # noqa: E402
from aiservices.handlers.chatterbox.s3gen import S3GenEngine  # noqa: E402

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

LENGTHS = (30, 3, 77, 50, 1)
CLIPS = ((115, 1.0), (190, 2.37), (305, 1.5))
"""Pitch in Hz and seconds; 2.37 s is no whole number of tokens."""


@pytest.fixture(scope="module", autouse=True)
def patch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        yield
    model.cache_clear()
    expected.cache_clear()


@cache
def model(meanflow: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_chatterbox.import_library().S3Gen(meanflow=meanflow).eval()


def voice(meanflow: bool, number: int) -> dict[str, Any]:
    pitch_hz, seconds = CLIPS[number % len(CLIPS)]
    hum = torch.sin(torch.arange(int(24_000 * seconds)) * (2 * torch.pi * pitch_hz / 24_000)) / 2
    with torch.inference_mode():
        made: dict[str, Any] = model(meanflow).embed_ref(hum, 24_000, device="cpu")
    return made


def tokens(number: int) -> list[int]:
    made = torch.randint(0, 6561, (LENGTHS[number],), generator=torch.Generator().manual_seed(number))
    return [int(token) for token in made]


@cache
def expected(meanflow: bool) -> list[Samples]:
    made = []
    for number in range(len(LENGTHS)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            wave, _ = model(meanflow).inference(
                speech_tokens=torch.tensor(tokens(number)),
                ref_dict=voice(meanflow, number),
                n_cfm_timesteps=2 if meanflow else None,
            )
        made.append(wave[0].numpy())
    return made


def requests(meanflow: bool) -> list[SoundRequest]:
    made = []
    for number in range(len(LENGTHS)):
        own = voice(meanflow, number)
        speaker = GenVoice(own["prompt_token"][0], own["prompt_feat"][0], own["embedding"])
        made.append(SoundRequest(tokens(number), speaker, torch.Generator().manual_seed(number)))
    return made


def sound(made: Sequence[Samples | Exception]) -> list[Samples]:
    assert not [one for one in made if isinstance(one, Exception)]
    return [one for one in made if not isinstance(one, Exception)]


def farthest(ours: Sequence[Samples], theirs: Sequence[Samples]) -> float:
    assert [len(one) for one in ours] == [len(one) for one in theirs]
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


@pytest.fixture
def cores(request: pytest.FixtureRequest) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(usual)


@pytest.mark.timeout(180)  # as the library calculates, on a busy machine
@pytest.mark.parametrize("meanflow", [False, True], ids=["ten steps", "meanflow"])
@pytest.mark.parametrize(
    ("max_tokens", "cores"),
    [(16_000, 1), (300, 1), (300, 2)],
    ids=["one pass", "several passes", "several passes at once"],
    indirect=["cores"],
)
def test_rows_of_different_voices_and_lengths_sound_as_the_library_alone(
    meanflow: bool, max_tokens: int, cores: None
) -> None:
    ours = S3GenEngine(model(meanflow), "cpu", steps=2 if meanflow else 10, max_tokens=max_tokens)
    alone = [sound(ours.render([request]))[0] for request in requests(meanflow)]
    together = sound(ours.render(requests(meanflow)))
    ours.close()
    assert farthest(alone, expected(meanflow)) < 1e-4
    assert farthest(together, expected(meanflow)) < 1e-4
    assert min(float(np.abs(sound).max()) for sound in together) > 0.01


@pytest.mark.parametrize("max_frames", [4_000, 450])
@pytest.mark.parametrize("meanflow", [False, True], ids=["ten steps", "meanflow"])
def test_a_vocoder_of_all_rows_together_sounds_as_the_library_alone(
    meanflow: bool, max_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiservices.handlers.chatterbox.vocoder._MAX_FRAMES", max_frames)
    ours = S3GenEngine(model(meanflow), "cpu", steps=2 if meanflow else 10, max_tokens=16_000)
    ours._vocoder._together = True
    groups: list[int] = []
    grouped = ours._vocoder._grouped

    def noted(rows: Sequence[Any]) -> Any:
        groups.append(len(rows))
        return grouped(rows)

    monkeypatch.setattr(ours._vocoder, "_grouped", noted)
    together = sound(ours.render(requests(meanflow)))
    ours.close()
    assert groups == ([5] if max_frames == 4_000 else [2, 2, 1])
    assert farthest(together, expected(meanflow)) < 1e-4


def test_rows_that_fail_together_sound_alone_as_they_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = S3GenEngine(model(False), "cpu", max_tokens=16_000)
    sounds = ours._vocoder.sounds

    def failing(spectrograms: Sequence[Any], generators: Sequence[Any]) -> list[Samples]:
        if len(spectrograms) > 1 or spectrograms[0].shape[2] == 2 * LENGTHS[1]:
            raise ValueError("this row cannot be heard")
        return sounds(spectrograms, generators)

    monkeypatch.setattr(ours._vocoder, "sounds", failing)
    made, theirs = ours.render(requests(False)), list(expected(False))
    ours.close()
    assert isinstance(made.pop(1), ValueError)
    del theirs[1]
    assert farthest(sound(made), theirs) < 1e-4


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    ours = S3GenEngine(model(False), "cpu")
    ours.render(requests(False)[:1])
    ours.close()
    assert torch.equal(torch.random.get_rng_state(), before)
