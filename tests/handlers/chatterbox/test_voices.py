"""What the model makes of clips: made once, kept, bounded, never mixed up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.errors import ConfigError, InvalidInput
from aiservices.handler import Task
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.handlers.chatterbox.request import ChatterboxRequest
from aiservices.handlers.speech_contract import TextToSpeechInput
from tests.handlers.chatterbox.speaking import (
    HIGH,
    LOW,
    NEEDS_CHATTERBOX,
    PLAIN,
    Listener,
    job,
    loaded,
    same,
    say,
    speak,
)
from tests.handlers.speech_fakes import as_file, voice_like

pytestmark = NEEDS_CHATTERBOX


def test_two_voices_in_turn_are_never_swapped(handler: ChatterboxTextToSpeech) -> None:
    own, low, high = say(handler), say(handler, clip=LOW), say(handler, clip=HIGH)
    assert not same(own, low)
    assert not same(low, high)
    mixed = speak(handler, [job(handler, clip=clip) for clip in (HIGH, None, LOW, HIGH)])
    for speech, wanted in zip(mixed, (high, own, low, high), strict=True):
        assert same(speech, wanted)
    assert (low.voice, low.warnings) == ("audio_prompt", [])


def test_a_named_voice_is_taken_from_its_file(handler: ChatterboxTextToSpeech) -> None:
    assert handler.voices == ("default", "anna")
    assert [(info.name, info.description, info.language) for info in handler.voices_offered()][1:] == [
        ("anna", "a hum", "en")
    ]
    assert same(say(handler, voice="anna"), say(handler, clip=HIGH))
    with pytest.raises(InvalidInput, match=r"^\$\.voice: unknown voice 'bob'; there are: default, anna$"):
        say(handler, voice="bob")


def test_what_the_model_makes_of_a_clip_is_kept_beside_it(
    handler: ChatterboxTextToSpeech, checkpoint: Path, voices_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = voices_dir.glob("anna.*.voice")
    wanted = say(handler, voice="anna")
    with monkeypatch.context() as unable:
        unable.setattr("aiservices.handlers.chatterbox.voices.prepare_clip", None)
        again = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    assert same(say(again, voice="anna"), wanted)
    kept.write_bytes(b"broken")
    mended = loaded(checkpoint, {**PLAIN, "voices_dir": str(voices_dir)})
    assert same(say(mended, voice="anna"), wanted)
    assert kept.stat().st_size > 1000


def test_the_voices_of_prompts_are_made_once_and_their_number_is_bounded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    handler = loaded(checkpoint, {**PLAIN, "cached_voices": 2})
    make = VoiceStore.make

    def counted(store: VoiceStore, clip: Any) -> Any:
        made.append(clip.digest)
        return make(store, clip)

    made: list[str] = []
    monkeypatch.setattr(VoiceStore, "make", counted)
    other = as_file(voice_like(180, seconds=3))
    for clip in (LOW, HIGH, LOW, other, LOW, HIGH):  # HIGH was the one not used for longest when other came
        say(handler, "Hi.", clip)
    assert len(made) == 4
    assert len(handler._ready.voices) == 2


def test_a_voice_is_made_before_the_model_is_asked_and_once_for_all_who_want_it(
    handler: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    made, make = list[str](), VoiceStore.make
    clip = as_file(voice_like(210, seconds=4))

    def noted(store: VoiceStore, heard: Any) -> Any:
        made.append(threading.current_thread().name)
        return make(store, heard)

    async def preprocess(number: int) -> Task[ChatterboxRequest]:
        context = Listener(clip)
        asked = TextToSpeechInput(text="Hi.", audio_prompt_url="https://host/a.wav", seed=number)
        return Task(await handler.preprocess(asked, context), context)

    async def together() -> list[Task[ChatterboxRequest]]:
        return await asyncio.gather(*map(preprocess, range(3)))

    monkeypatch.setattr(VoiceStore, "make", noted)
    jobs = asyncio.run(together())
    assert len(made) == 1
    assert threading.current_thread().name not in made
    monkeypatch.setattr(VoiceStore, "make", None)  # the model's thread makes none
    assert len(speak(handler, jobs)) == 3


def test_a_clip_that_cannot_be_listened_to_fails_its_job_alone(
    handler: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    wanted, make = say(handler), VoiceStore.make
    good = job(handler)

    def failing(store: VoiceStore, heard: Any) -> Any:
        raise ValueError("the voice encoder stumbled")

    monkeypatch.setattr(VoiceStore, "make", failing)
    with pytest.raises(ValueError, match="stumbled"):
        job(handler, clip=as_file(voice_like(205, seconds=4)))
    monkeypatch.setattr(VoiceStore, "make", make)
    assert same(speak(handler, [good])[0], wanted)


def test_a_voice_is_not_changed_by_its_use_and_holds_no_gradients(handler: ChatterboxTextToSpeech) -> None:
    import torch

    say(handler, clip=LOW)
    voice = next(reversed(handler._ready.voices._made.values()))
    tensors = [voice.speaker, voice.prompt, voice.gen.tokens, voice.gen.frames, voice.gen.embedding]
    before = [tensor.clone() for tensor in tensors]
    say(handler, clip=LOW, exaggeration=1.5)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert not any(tensor.requires_grad for tensor in tensors)
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) < 400_000


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute where nobody else computes
def test_memory_does_not_grow_with_the_number_of_voices(handler: ChatterboxTextToSpeech) -> None:
    from aiservices.handlers.chatterbox.clips import Clip

    at_24k, at_16k = (voice_like(120, seconds=3, sample_rate=rate) for rate in (24_000, 16_000))
    sizes = []
    for number in range(500):
        clip = Clip(np.roll(at_24k, 3 * number), np.roll(at_16k, 2 * number), f"voice {number}")
        voices = handler._ready.voices
        voices._keep(clip.digest, voices.make(clip))
        if number in (19, 499):
            say(handler, "Hi.", LOW)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert len(handler._ready.voices) == 64
    assert sizes[1] - sizes[0] < 100e6


def test_a_voice_file_that_holds_no_voice_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bob.wav").write_bytes(as_file(voice_like(110, seconds=0.5)))
    with pytest.raises(ConfigError, match=r"options\.voices_dir: bob\.wav: expected 3 to 60 s"):
        loaded(checkpoint, {"voices_dir": str(tmp_path)})
