"""The input and output that all text-to-speech services have."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from aiservices.handlers.speech_contract import TextToSpeechInput, TextToSpeechOutput


def test_every_field_has_a_description_and_every_number_its_limits() -> None:
    for contract in (TextToSpeechInput, TextToSpeechOutput):
        schema = msgspec.json.schema(contract)["$defs"][contract.__name__]["properties"]
        assert all("description" in field for field in schema.values())
    schema = msgspec.json.schema(TextToSpeechInput)["$defs"]["TextToSpeechInput"]["properties"]
    for name in ("speed", "exaggeration", "cfg_weight", "temperature"):
        assert {"minimum", "maximum", "default"} <= set(schema[name])


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "x" * 80_001},
        {"text": "hi", "format": "aac"},
        {"text": "hi", "speed": 0.4},
        {"text": "hi", "speed": 2.1},
        {"text": "hi", "exaggeration": -0.1},
        {"text": "hi", "cfg_weight": 1.1},
        {"text": "hi", "temperature": 0.0},
        {"text": "hi", "seed": -1},
        {"text": "hi", "seed": 2**32},
        {"text": "hi", "voice": ""},
        {"text": "hi", "audio_prompt_url": ""},
        {"text": "hi", "sample_rate": 11_025},
        {"text": "hi", "language": "English"},
        {"text": "hi", "min_p": 1.1},
        {"text": "hi", "top_p": 0.0},
        {"text": "hi", "repetition_penalty": 0.9},
        {"text": 5},
    ],
)
def test_what_is_outside_its_limits_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, TextToSpeechInput)


def test_reading_the_contract_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "soundfile", "transformers", "chatterbox", "librosa"}
    modules = "aiservices.handlers.espeak, aiservices.handlers.chatterbox"
    program = f"import sys, {modules}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
