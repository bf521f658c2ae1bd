"""Many callers of the Chatterbox service at once, over HTTP: each gets what it would get alone."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiservices.registry import Registry
from aiservices.settings import Config, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import Samples, as_file, voice_like
from tests.transports.http.apps import Client, MakeClient, ended, run

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

pytestmark = [
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

SERVICE = "speech"
VOICES = {f"voice{hertz}": hertz for hertz in (90, 110, 140, 180, 220, 260, 330)}
FIRST_SEED = 1000
HALF_A_STEP = 0.5 / 32768
"""Of the 16 bits of the answer."""

Tokens = dict[int, list[int]]
"""Speech tokens by the seed of the job."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        tiny_chatterbox.write_checkpoint(folder := tmp_path_factory.mktemp("chatterbox"))
        yield folder


@pytest.fixture(scope="module")
def voices_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    for name, hertz in VOICES.items():
        (folder / f"{name}.wav").write_bytes(as_file(voice_like(hertz, seconds=3.2)))
    return folder


@pytest.fixture
async def client(checkpoint: Path, voices_dir: Path, aiohttp_client: MakeClient) -> Client:
    options = {"voices_dir": str(voices_dir), "watermark": False, "loudness_lufs": None}
    service = ServiceConfig(
        name=SERVICE,
        handler="aiservices.handlers.chatterbox:ChatterboxTextToSpeech",
        model=str(checkpoint),
        device="cpu",
        max_batch_size=16,
        options=options,
    )
    return await aiohttp_client(
        create_app(Registry(Config(server=ServerConfig(grace_s=0.0), services={SERVICE: service})))
    )


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """What S3Gen is given; the generator still knows the job's seed."""
    from aiservices.handlers.chatterbox.s3gen import S3GenEngine

    heard: Tokens = {}
    render = S3GenEngine.render

    def noted(engine: S3GenEngine, requests: Sequence[Any], **how: Any) -> Any:
        seeds = [request.generator.initial_seed() for request in requests]
        asked_for = {seed: list(one.tokens) for seed, one in zip(seeds, requests, strict=True) if seed >= FIRST_SEED}
        heard.update(asked_for)  # and not what is said to warm up
        return render(engine, requests, **how)

    monkeypatch.setattr(S3GenEngine, "render", noted)
    return heard


def asked(number: int) -> dict[str, Any]:
    names = ["default", *VOICES]
    return {
        "text": f"Say {number} words, please."[: 12 + number % 12],
        "voice": names[number % len(names)],
        "seed": FIRST_SEED + number,
        "cfg_weight": (0.5, 0.0, 1.0)[number % 3],
        "format": "wav",
    }


async def speak(client: Client, given: Mapping[str, Any]) -> Samples:
    soundfile: Any = importlib.import_module("soundfile")
    shown = await ended(client, SERVICE, await run(client, SERVICE, **given))
    assert shown["status"] == "COMPLETED", shown
    assert shown["output"]["warnings"] == []
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(shown["output"]["audio"])), dtype="float32")
    return np.asarray(samples)


@pytest.mark.parametrize(
    ("count", "callers"), [(8, 4), pytest.param(64, 16, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_each_caller_gets_the_tokens_and_the_sound_that_it_would_get_alone(
    client: Client, tokens: Tokens, count: int, callers: int
) -> None:
    alone = [await speak(client, asked(number)) for number in range(count)]
    tokens_alone = dict(tokens)
    tokens.clear()
    assert len(tokens_alone) == count

    numbers, together = iter(range(count)), dict[int, Samples]()

    async def caller() -> None:
        for number in numbers:
            together[number] = await speak(client, asked(number))

    await asyncio.gather(*(caller() for _ in range(callers)))
    assert tokens == tokens_alone
    assert [len(together[number]) for number in range(count)] == [len(one) for one in alone]
    worst = max(float(np.abs(together[number] - one).max()) for number, one in enumerate(alone))
    assert worst < 1e-4 + HALF_A_STEP
