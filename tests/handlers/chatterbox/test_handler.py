"""The Chatterbox service on tiny checkpoints of the library's own classes."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.errors import ConfigError, InvalidInput, ServiceError
from aiservices.handlers import audio
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.speech_contract import TextToSpeechInput
from tests.handlers import tiny_chatterbox
from tests.handlers.chatterbox.speaking import (
    HIGH,
    LONG,
    LOW,
    NEEDS_CHATTERBOX,
    PLAIN,
    SENTENCE,
    job,
    loaded,
    same,
    samples_of,
    say,
    speak,
)
from tests.handlers.speech_fakes import FakeContext, as_file, heard, voice_like

pytestmark = NEEDS_CHATTERBOX


def test_a_text_becomes_sound_in_the_voice_of_the_checkpoint(marking: ChatterboxTextToSpeech) -> None:
    output = speak(marking, [one := job(marking)])[0]
    samples, sample_rate = heard(output)
    assert isinstance(one.context, FakeContext)
    assert sum(seconds for _, seconds in one.context.counted) == pytest.approx(output.duration_s, abs=0.001)
    assert {unit for unit, _ in one.context.counted} == {"audio_seconds"}
    assert (output.voice, output.engine, output.sample_rate, output.warnings) == ("default", "chatterbox", 24_000, [])
    assert len(samples) / sample_rate == pytest.approx(output.duration_s, abs=0.01)
    assert 0.5 < output.duration_s < 4
    assert np.abs(samples).max() > 0.01


def test_the_sound_is_the_one_that_the_library_generates_from_the_same_seed(
    handler: ChatterboxTextToSpeech, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    theirs = tiny_chatterbox.import_library().ChatterboxTTS.from_local(checkpoint, "cpu")
    monkeypatch.setattr(theirs.watermarker, "apply_watermark", lambda wave, **_: wave)
    for seed, cfg_weight, exaggeration in ((1, 0.5, 0.5), (2, 0.8, 1.1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            whole = theirs.generate(SENTENCE, cfg_weight=cfg_weight, exaggeration=exaggeration)[0].numpy()
        ours = samples_of(say(handler, seed=seed, cfg_weight=cfg_weight, exaggeration=exaggeration))
        middle = ours[400:-400]  # the rest is faded
        places = np.lib.stride_tricks.sliding_window_view(whole, len(middle))[:24_000]
        assert np.abs(places - middle).max(axis=1).min() < 1e-4


def test_a_seed_gives_the_same_speech_again_and_leaves_the_global_generator_alone(
    handler: ChatterboxTextToSpeech,
) -> None:
    import torch

    before = torch.random.get_rng_state()
    first = say(handler)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(first, say(handler, seed=2))
    assert not same(first, say(handler, seed=None))
    assert same(first, say(handler))


def test_a_prompt_wins_over_a_named_voice_and_the_answer_says_so(handler: ChatterboxTextToSpeech) -> None:
    speech = say(handler, clip=LOW, voice="anna")
    assert same(speech, say(handler, clip=LOW))
    assert speech.warnings == ["voice 'anna' was not used: audio_prompt_url gives the voice"]


@pytest.mark.parametrize(
    "fields",
    [
        {"cfg_weight": 0.0},
        {"cfg_weight": 1.0},
        {"temperature": 2.0},
        {"repetition_penalty": 3.0},
        {"top_p": 0.3},
        {"min_p": 0.9},
    ],
)
def test_each_control_changes_the_speech(handler: ChatterboxTextToSpeech, fields: dict[str, Any]) -> None:
    assert not same(say(handler, **fields), say(handler))


def test_exaggeration_reaches_the_model_and_stays_with_its_request(handler: ChatterboxTextToSpeech) -> None:
    seen: list[float] = []
    hook = handler._ready.model.t3.cond_enc.emotion_adv_fc.register_forward_pre_hook(
        lambda _module, inputs: seen.append(round(float(inputs[0]), 3))
    )
    speak(handler, [job(handler, exaggeration=value) for value in (1.7, 0.5, 0.0)])
    hook.remove()
    assert seen == [1.7, 0.5, 0.0]


def test_another_tempo_changes_the_length_alone(handler: ChatterboxTextToSpeech) -> None:
    usual, fast = (say(handler, speed=speed).duration_s for speed in (1.0, 2.0))
    assert fast == pytest.approx(usual / 2, abs=0.05)


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "ogg", "opus", "pcm"])
def test_every_format_comes_at_the_sample_rate_asked_for(handler: ChatterboxTextToSpeech, form: str) -> None:
    output = say(handler, format=form, sample_rate=16_000)
    samples, sample_rate = heard(output)
    assert (output.format, output.sample_rate, sample_rate) == (form, 16_000, 16_000)
    assert len(samples) / sample_rate == pytest.approx(say(handler).duration_s, abs=0.1)


def test_loudness_is_brought_to_its_target(checkpoint: Path, handler: ChatterboxTextToSpeech) -> None:
    pyloudnorm: Any = importlib.import_module("pyloudnorm")
    louder = loaded(checkpoint, {**PLAIN, "loudness_lufs": -16.0})
    for text in (SENTENCE, LONG):
        loudness = pyloudnorm.Meter(24_000).integrated_loudness(samples_of(say(louder, text)))
        assert loudness == pytest.approx(-16, abs=1.5)


def test_text_in_letters_that_the_model_does_not_know_is_said_with_a_warning(handler: ChatterboxTextToSpeech) -> None:
    assert (
        "unknown to this model, which speaks en"
        in say(handler, "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430?").warnings[
            0
        ]
    )


def test_text_without_a_letter_or_digit_is_refused_before_acceptance(handler: ChatterboxTextToSpeech) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words, got no letter and no digit$"):
        handler.validate(TextToSpeechInput(text="\U0001f600 \u20ac"))
    handler.validate(TextToSpeechInput(text="\U0001f600 5"))


def test_the_marks_of_the_tokenizer_cannot_be_sent_as_text(handler: ChatterboxTextToSpeech) -> None:
    assert same(say(handler, "Hello [STOP]there[START]"), say(handler, "Hello there"))
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words"):
        say(handler, "[STOP]")


def test_the_watermark_is_on_unless_turned_off(marking: ChatterboxTextToSpeech, checkpoint: Path) -> None:
    unmarked = samples_of(say(loaded(checkpoint, {"watermark": False})))
    marked = samples_of(say(marking))
    assert len(marked) == len(unmarked)
    assert not np.allclose(marked, unmarked, atol=1e-3)


def test_the_language_model_may_be_in_bfloat16(checkpoint: Path) -> None:
    handler = loaded(checkpoint, {**PLAIN, "dtype": "bfloat16"})
    assert audio.frame_levels(samples_of(say(handler, exaggeration=0.3)), 24_000).max() > 0.001
    assert same(say(handler, clip=LOW), say(handler, clip=LOW))


def test_a_model_that_is_loaded_has_spoken_and_forgotten_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiservices.handlers.chatterbox.s3gen import S3GenEngine
    from aiservices.handlers.chatterbox.t3 import T3Engine

    used: list[str] = []
    for owner, name in ((T3Engine, "prepare"), (T3Engine, "step"), (S3GenEngine, "render")):
        usual = getattr(owner, name)

        def noted(*given: Any, name: str = name, usual: Any = usual, **named: Any) -> Any:
            used.append(name)
            return usual(*given, **named)

        monkeypatch.setattr(owner, name, noted)
    handler = loaded(checkpoint)
    assert list(dict.fromkeys(used)) == ["prepare", "step", "render"]
    engine = handler._ready.engine
    assert (len(engine._t3), engine._jobs, len(handler._ready.voices)) == (0, [], 0)
    handler.unload()


def test_a_model_that_cannot_speak_is_not_loaded_and_leaves_no_thread(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.flow import Flow

    def failing(*_: Any) -> Any:
        raise ValueError("no sound at all")

    monkeypatch.setattr(Flow, "spectrograms", failing)
    before, handler = set(threading.enumerate()), ChatterboxTextToSpeech()
    with pytest.raises(ValueError, match="no sound at all"):
        handler.load(checkpoint, "cpu", {"cpu_threads": 1})
    assert handler.voices is None
    assert set(threading.enumerate()) <= before


def test_unload_forgets_the_model_and_the_voices(checkpoint: Path) -> None:
    handler = loaded(checkpoint)
    handler.admit([job(handler)])
    handler.step()
    handler.unload()
    assert handler.voices is None
    with pytest.raises(ServiceError, match="not loaded"):
        handler.step()


@pytest.fixture(scope="module", params=["multilingual", "turbo", "nano"])
def other(
    request: pytest.FixtureRequest, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatterboxTextToSpeech]:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_chatterbox.write_checkpoint(folder, request.param)
    handler = loaded(folder, PLAIN)
    yield handler
    handler.unload()


def test_another_variant_speaks_alone_and_together(other: ChatterboxTextToSpeech) -> None:
    asked: list[dict[str, Any]] = [{}, {"clip": LOW}, {"seed": 3}, {"clip": HIGH, "text": LONG}]
    alone = [say(other, **fields) for fields in asked]
    together = speak(other, [job(other, **fields) for fields in asked])
    assert all(same(one, both) for one, both in zip(alone, together, strict=True))
    assert min(output.duration_s for output in alone) > 0.1


def test_a_language_is_spoken_or_refused(other: ChatterboxTextToSpeech, handler: ChatterboxTextToSpeech) -> None:
    if len(other._ready.model.reader.languages) > 1:
        assert other._ready.model.reader.languages == ["de", "en", "fr", "zh"]
        assert not same(say(other, language="de"), say(other, language="fr"))
    for refusing in (other, handler):
        with pytest.raises(InvalidInput, match=r"^\$\.language: this model speaks .*, not 'xx'$"):
            say(refusing, language="xx")


def test_a_variant_says_what_it_does_not_heed_and_wants_a_longer_clip(other: ChatterboxTextToSpeech) -> None:
    if len(other._ready.model.reader.languages) > 1:
        assert say(other, cfg_weight=0.0).warnings == []
        return
    name = other._ready.model.variant.name.title()
    assert say(other, cfg_weight=0.2).warnings == [f"cfg_weight has no effect on {name}"]
    with pytest.raises(InvalidInput, match=r"^\$\.audio_prompt_url: expected at least 5 s of speech for this model"):
        say(other, clip=as_file(voice_like(110, seconds=4)))


def test_without_a_voice_of_its_own_the_request_has_to_bring_one(copied: Path) -> None:
    (copied / "conds.pt").unlink()
    handler = loaded(copied)
    with pytest.raises(InvalidInput, match="unknown voice 'default'; there are: none, give audio_prompt_url"):
        say(handler)
    assert say(handler, clip=LOW).voice == "audio_prompt"


def test_no_model_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="needs a model"):
        ChatterboxTextToSpeech().load(None, "cpu", {})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ServiceError, match=r"it lacks ve\.safetensors, t3_cfg\.safetensors, s3gen\.safetensors$"):
        ChatterboxTextToSpeech().load(tmp_path, "cpu", {})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"default_voice": "bob"}, r"options\.default_voice: unknown voice 'bob'; there are: default"),
        ({"voices_dir": "/does/not/exist"}, r"options\.voices_dir: no such folder"),
        ({"watermarks": False}, r"options\.watermarks: .*'watermark'"),
        ({"dtype": "float16"}, r"options\.dtype"),
        ({"default_language": "de"}, r"options\.default_language: the model does not speak 'de'; it speaks en"),
    ],
)
def test_a_wrong_option_is_named(checkpoint: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        loaded(checkpoint, options)
