"""The Chatterbox engine on a tiny checkpoint of the library's own classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.errors import ConfigError, InvalidInput, JobFailed, ServiceError
from aiservices.handlers import audio
from aiservices.handlers.chatterbox import PAUSE_S, ChatterboxTextToSpeech
from aiservices.handlers.speech import Reference, Speech, TextToSpeechInput
from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import FakeContext, as_file, heard, task, voice_like

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

pytestmark = [
    pytest.mark.chatterbox,
    # What chatterbox-tts 0.1.7 calls and torch and its friends have deprecated since.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

SENTENCE = "Hello there, this is a test."
LONG = " ".join(f"This is sentence number {number}, and it goes on for a while." for number in range(8))
LOW, HIGH = as_file(voice_like(110, seconds=3)), as_file(voice_like(260, seconds=3))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        yield patch


@pytest.fixture(scope="module")
def checkpoint(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatterbox")
    tiny_chatterbox.write_checkpoint(folder)
    return folder


def loaded(checkpoint: Path, options: Mapping[str, Any] | None = None) -> ChatterboxTextToSpeech:
    engine = ChatterboxTextToSpeech()
    engine.load(checkpoint, "cpu", {"cpu_threads": 1, **(options or {})})
    return engine


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatterboxTextToSpeech]:
    voices = tmp_path_factory.mktemp("voices")
    (voices / "anna.wav").write_bytes(HIGH)
    (voices / "readme.txt").write_text("not a voice")
    engine = loaded(checkpoint, {"voices_dir": str(voices)})
    yield engine
    engine.unload()


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break: links to the weights, so that nothing large is copied."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


def say(
    engine: ChatterboxTextToSpeech,
    text: str = SENTENCE,
    clip: bytes | None = None,
    *,
    context: FakeContext | None = None,
    **fields: Any,
) -> Speech:
    (speech,) = engine.predict([task(text, clip, context=context, **{"seed": 1, **fields})])
    if isinstance(speech, Exception):
        raise speech
    return speech


def same(one: Speech, other: Speech) -> bool:
    return np.array_equal(one.samples, other.samples)


def test_a_text_becomes_sound_in_the_voice_of_the_checkpoint(engine: ChatterboxTextToSpeech) -> None:
    output = engine.postprocess(say(engine))
    samples, sample_rate = heard(output)
    assert (output.voice, output.engine, output.sample_rate, output.warnings) == ("default", "chatterbox", 24_000, [])
    assert len(samples) / sample_rate == pytest.approx(output.duration_s, abs=0.01)
    assert 0.5 < output.duration_s < 4
    assert np.abs(samples).max() > 0.01


def test_a_seed_gives_the_same_speech_again_and_leaves_the_global_generator_alone(
    engine: ChatterboxTextToSpeech,
) -> None:
    import torch

    before = torch.random.get_rng_state()
    first = say(engine)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not same(first, say(engine, seed=2))
    assert not same(first, say(engine, seed=None))
    assert same(first, say(engine))


def test_two_voices_in_turn_are_never_swapped(engine: ChatterboxTextToSpeech) -> None:
    own, low, high = say(engine), say(engine, clip=LOW), say(engine, clip=HIGH)
    assert len({speech.samples.tobytes() for speech in (own, low, high)}) == 3
    mixed = engine.predict([task(SENTENCE, clip, seed=1) for clip in (HIGH, None, LOW, HIGH)])
    for speech, wanted in zip(mixed, (high, own, low, high), strict=True):
        assert isinstance(speech, Speech)
        assert same(speech, wanted)
    assert (low.voice, low.warnings) == ("audio_prompt", [])


def test_a_named_voice_is_taken_from_its_file(engine: ChatterboxTextToSpeech) -> None:
    assert engine.voices == ("default", "anna")
    assert same(say(engine, voice="anna"), say(engine, clip=HIGH))
    with pytest.raises(InvalidInput, match=r"^\$\.voice: unknown voice 'bob'; there are: default, anna$"):
        say(engine, voice="bob")


def test_a_prompt_wins_over_a_named_voice_and_the_answer_says_so(engine: ChatterboxTextToSpeech) -> None:
    speech = say(engine, clip=LOW, voice="anna")
    assert same(speech, say(engine, clip=LOW))
    assert speech.warnings == ["voice 'anna' was not used: audio_prompt_url gives the voice"]


def test_the_voices_of_prompts_are_made_once_and_their_number_is_bounded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(checkpoint, {"cached_voices": 2})
    made: list[str] = []
    make = engine._conditionals

    def counted(reference: Reference) -> Any:
        made.append(reference.digest)
        return make(reference)

    monkeypatch.setattr(engine, "_conditionals", counted)
    other = as_file(voice_like(180, seconds=3))
    for clip in (LOW, HIGH, LOW, other, LOW, HIGH):  # HIGH was the one not used for longest when other came
        say(engine, "Hi.", clip)
    assert len(made) == 4
    assert len(engine._prompts) == 2


def test_a_voice_is_not_changed_by_its_use_and_holds_no_gradients(engine: ChatterboxTextToSpeech) -> None:
    import torch

    say(engine, clip=LOW)
    voice = next(reversed(engine._prompts.values()))
    tensors = {name: value for part in (voice.t3.__dict__, voice.gen) for name, value in part.items()}
    before = {name: value.clone() for name, value in tensors.items() if torch.is_tensor(value)}
    say(engine, clip=LOW, exaggeration=1.5)
    assert voice.t3.cond_prompt_speech_emb is None
    for name, value in before.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
        assert not tensors[name].requires_grad
    assert engine._model.conds is None


@pytest.mark.parametrize("fields", [{"cfg_weight": 0.0}, {"cfg_weight": 1.0}, {"temperature": 2.0}])
def test_each_control_changes_the_speech(engine: ChatterboxTextToSpeech, fields: dict[str, Any]) -> None:
    assert not same(say(engine, **fields), say(engine))


def test_exaggeration_reaches_the_model_and_stays_with_its_request(engine: ChatterboxTextToSpeech) -> None:
    seen: list[float] = []
    hook = engine._model.t3.cond_enc.emotion_adv_fc.register_forward_pre_hook(
        lambda _module, inputs: seen.append(round(float(inputs[0]), 3))
    )
    engine.predict([task(SENTENCE, exaggeration=value) for value in (1.7, 0.5, 0.0)])
    hook.remove()
    assert seen == [1.7, 0.5, 0.0]


def test_another_tempo_changes_the_length_alone(engine: ChatterboxTextToSpeech) -> None:
    usual, fast = (engine.postprocess(say(engine, speed=speed)).duration_s for speed in (1.0, 2.0))
    assert fast == pytest.approx(usual / 2, abs=0.05)


def test_long_text_is_said_in_parts_with_pauses_and_progress(engine: ChatterboxTextToSpeech) -> None:
    context = FakeContext()
    speech = say(engine, LONG, context=context)
    assert context.fractions == [0.5, 1]
    silent = np.flatnonzero(speech.samples == 0)
    pauses = sum(len(run) >= PAUSE_S * 24_000 for run in np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1))
    assert pauses == 1


def test_a_cancelled_job_stops_before_its_next_part(engine: ChatterboxTextToSpeech) -> None:
    context = FakeContext(cancel_at=0.3)
    with pytest.raises(JobFailed, match="cancelled"):
        say(engine, LONG, context=context)
    assert context.fractions == [0.5]


def test_a_part_at_odds_with_its_text_is_tried_again_and_then_said_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(checkpoint, {"max_new_tokens": 25})
    tries: list[int] = []
    infer = engine._model.t3.inference

    def counted(**given: Any) -> Any:
        tries.append(given["max_new_tokens"])
        return infer(**given)

    monkeypatch.setattr(engine._model.t3, "inference", counted)
    speech = say(engine)
    assert tries == [25, 25]
    assert speech.warnings == ["a part of the speech is longer or shorter than its text; another seed may be better"]


def test_a_part_without_any_sound_fails_that_job(
    engine: ChatterboxTextToSpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    stop = torch.tensor([[tiny_chatterbox.STOP_SPEECH]])
    monkeypatch.setattr(engine._model.t3, "inference", lambda **_: stop)
    with pytest.raises(JobFailed, match="made no sound"):
        say(engine)


def test_text_in_letters_that_the_model_does_not_know_is_said_with_a_warning(engine: ChatterboxTextToSpeech) -> None:
    assert "unknown to this model" in say(engine, "Привет, как дела?").warnings[0]


def test_text_without_a_letter_or_digit_is_refused_before_acceptance(engine: ChatterboxTextToSpeech) -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words, got no letter and no digit$"):
        engine.validate(TextToSpeechInput(text="😀 €"))
    engine.validate(TextToSpeechInput(text="😀 5"))


def test_the_marks_of_the_tokenizer_cannot_be_sent_as_text(engine: ChatterboxTextToSpeech) -> None:
    assert same(say(engine, "Hello [STOP]there[START]"), say(engine, "Hello there"))
    with pytest.raises(InvalidInput, match=r"^\$\.text: expected words"):
        say(engine, "[STOP]")


def test_the_watermark_is_on_unless_turned_off(engine: ChatterboxTextToSpeech, checkpoint: Path) -> None:
    plain = loaded(checkpoint, {"watermark": False})
    speech = say(engine)
    unmarked, _ = heard(plain.postprocess(speech))
    marked, _ = heard(engine.postprocess(speech))
    assert np.abs(unmarked - speech.samples).max() < 1e-4
    assert not np.allclose(marked, unmarked, atol=1e-4)


def test_the_language_model_may_be_in_bfloat16(checkpoint: Path) -> None:
    engine = loaded(checkpoint, {"dtype": "bfloat16"})
    assert audio.frame_levels(say(engine, exaggeration=0.3).samples, 24_000).max() > 0.001
    assert same(say(engine, clip=LOW), say(engine, clip=LOW))


def test_unload_forgets_the_model_and_the_voices(checkpoint: Path) -> None:
    engine = loaded(checkpoint)
    speech = say(engine)
    engine.unload()
    assert engine.voices is None
    with pytest.raises(JobFailed, match="unloaded"):
        engine.postprocess(speech)


# Loading


def test_without_a_voice_of_its_own_the_request_has_to_bring_one(copied: Path) -> None:
    (copied / "conds.pt").unlink()
    engine = loaded(copied)
    with pytest.raises(InvalidInput, match="unknown voice 'default'; there are: none, give audio_prompt_url"):
        say(engine)
    assert say(engine, clip=LOW).voice == "audio_prompt"


def test_no_model_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="needs a model"):
        ChatterboxTextToSpeech().load(None, "cpu", {})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ServiceError, match=r"it lacks ve\.safetensors, t3_cfg\.safetensors, s3gen\.safetensors$"):
        ChatterboxTextToSpeech().load(tmp_path, "cpu", {})


def rewrite(file: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    file.unlink()  # the file is a link to the one that the other tests use
    save_file(weights, file)


def test_a_renamed_weight_that_the_library_would_swallow_is_named(copied: Path) -> None:
    name = "flow.encoder_proj.weight"
    rewrite(copied / "s3gen.safetensors", lambda weights: weights.update({f"x.{name}": weights.pop(name)}))
    with pytest.raises(ServiceError, match=rf"s3gen\.safetensors are missing: {name}; unknown: x\.{name}$"):
        loaded(copied)


@pytest.mark.parametrize("file", ["t3_cfg.safetensors", "ve.safetensors"])
def test_a_missing_weight_is_named(copied: Path, file: str) -> None:
    rewrite(copied / file, lambda weights: weights.pop(next(iter(weights))))
    with pytest.raises(ServiceError, match=r"the checkpoint does not fit: .*Missing key"):
        loaded(copied)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"default_voice": "bob"}, r"options\.default_voice: unknown voice 'bob'; there are: default"),
        ({"voices_dir": "/does/not/exist"}, r"options\.voices_dir: no such folder"),
        ({"watermarks": False}, r"options\.watermarks: .*'watermark'"),
        ({"dtype": "float16"}, r"options\.dtype"),
    ],
)
def test_a_wrong_option_is_named(checkpoint: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        loaded(checkpoint, options)


def test_a_voice_file_that_holds_no_voice_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bob.wav").write_bytes(as_file(voice_like(110, seconds=0.5)))
    with pytest.raises(ConfigError, match=r"options\.voices_dir: bob\.wav: expected 3 to 60 s"):
        loaded(checkpoint, {"voices_dir": str(tmp_path)})


def test_a_missing_package_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perth", None)
    with pytest.raises(ServiceError, match=r"not installed whole .*perth.*scripts/install chatterbox"):
        loaded(checkpoint)


def test_a_watermark_that_cannot_be_loaded_is_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["perth"], "PerthImplicitWatermarker", None)
    with pytest.raises(ServiceError, match="setuptools<82"):
        loaded(checkpoint)
