"""Chatterbox's voices from a bucket: listed, spoken with, and not listened to again when another one comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.handler import OffersVoices
from aiservices.handlers.chatterbox import ChatterboxTextToSpeech
from aiservices.jobs import JobRequest
from aiservices.service import Service
from aiservices.settings import S3Config
from tests.fakes import make_service, make_shared
from tests.storage.conftest import Bucket, make_store
from tests.storage.proxy import FaultyProxy

if find_spec("chatterbox") is None:
    pytest.skip("the chatterbox extra is not installed: scripts/install chatterbox", allow_module_level=True)

from tests.handlers import tiny_chatterbox
from tests.handlers.speech_fakes import as_file, voice_like

pytestmark = [
    pytest.mark.s3,
    pytest.mark.chatterbox,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

VOICES = "s3://models/voices/"
ANNA, BOB = (as_file(voice_like(pitch, seconds=3.2)) for pitch in (260, 110))
LIMIT_S = 50.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        tiny_chatterbox.small_modules(patch)
        tiny_chatterbox.write_checkpoint(folder := tmp_path_factory.mktemp("chatterbox"))
        yield folder


@asynccontextmanager
async def speaking(checkpoint: Path, s3: S3Config, folder: Path, **options: Any) -> AsyncIterator[Service]:
    """A service whose downloads are kept in a folder, as a process has it from its start to its end."""
    store = make_store(folder, s3)
    shared = attrs.evolve(make_shared(), store=store)
    options = {"voices_dir": VOICES, "watermark": False, "cpu_threads": 1, **options}
    service = make_service(ChatterboxTextToSpeech(), shared=shared, model=str(checkpoint), options=options)
    await service.start()
    try:
        yield service
    finally:
        await service.close()
        await store.close()
        shared.pool.shutdown()


async def said_by(service: Service, voice: str) -> dict[str, Any]:
    job = service.submit(JobRequest(input={"text": "Hello there.", "voice": voice, "seed": 1}))
    await job.wait_end(LIMIT_S)
    assert job.output is not None, job.error
    return job.output.as_dict()


async def test_voices_in_a_bucket_are_listed_spoken_with_and_listened_to_once(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiservices.handlers.chatterbox.voices import VoiceStore

    made: list[str] = []
    make = VoiceStore.make

    def counted(store: VoiceStore, clip: Any) -> Any:
        if clip.digest:  # what the model warms up with has none
            made.append(clip.digest)
        return make(store, clip)

    monkeypatch.setattr(VoiceStore, "make", counted)
    about = json.dumps({"description": "a hum", "language": "en"}).encode()
    bucket.put({"anna.wav": ANNA, "anna.json": about}, prefix="voices/")

    async with speaking(checkpoint, s3, tmp_path) as service:
        anna, own = await said_by(service, "anna"), await said_by(service, "default")
        assert isinstance(service.handler, OffersVoices)
        offered = [(info.name, info.description) for info in service.handler.voices_offered()]
    assert offered == [("default", "the voice of the checkpoint"), ("anna", "a hum")]
    assert anna["voice"] == "anna"
    assert anna["audio"] != own["audio"]
    assert len(made) == 1

    bucket.put({"bob.wav": BOB}, prefix="voices/")
    proxy.seen.clear()
    async with speaking(checkpoint, s3, tmp_path) as service:
        assert (await said_by(service, "anna"))["audio"] == anna["audio"]
        assert (await said_by(service, "bob"))["voice"] == "bob"
    assert proxy.objects == ["bob.wav"]
    assert len(made) == 2

    async with speaking(checkpoint, s3, tmp_path) as service:
        assert (await said_by(service, "anna"))["audio"] == anna["audio"]
    assert proxy.objects == ["bob.wav"]
    assert len(made) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"voices_dir": "s3://nowhere/x/"}, "options.voices_dir: 's3://nowhere/x/': there is no such bucket"),
        ({"voices_dir": VOICES}, "options.voices_dir: anna.wav: expected 3 to 60 s"),
    ],
)
async def test_voices_that_cannot_be_had_fail_the_service_by_the_options_name(
    bucket: Bucket, s3: S3Config, checkpoint: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    bucket.put({"anna.wav": as_file(voice_like(110, seconds=0.5))}, prefix="voices/")
    async with speaking(checkpoint, s3, tmp_path, **options) as service:
        job = service.submit(JobRequest(input={"action": "warmup"}))
        await job.wait_end(LIMIT_S)
        assert (job.error or "").startswith(f"the model could not be loaded: {reason}")
