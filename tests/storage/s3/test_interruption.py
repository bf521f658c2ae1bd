"""Cancelled and killed downloads: nothing loads that is not complete, and the next one resumes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.jobs import JobRequest
from aiservices.settings import S3Config
from aiservices.storage import ModelStore, OnProgress, Progress
from tests.fakes import Upper, make_service, make_shared
from tests.storage.conftest import Bucket, read
from tests.storage.proxy import FaultyProxy, Stall
from tests.storage.s3.samples import MIB, MODEL, URI, is_weights, nothing_loads

pytestmark = pytest.mark.s3


async def test_a_cancelled_download_releases_its_lease_and_the_next_one_resumes(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(stall := Stall(proxy, where=lambda seen: seen.range.startswith("bytes=4194304-")))
    begun = asyncio.create_task(store.resolve(URI))
    await stall.reached.wait()
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    stall.let_go.set()
    assert nothing_loads(tmp_path)
    assert read(await store.resolve(URI)) == MODEL


async def start(settings: S3Config, folder: Path, uri: str = URI) -> asyncio.subprocess.Process:
    """Download a model in a process of its own, which then prints the folder."""
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from aiservices.settings import Config, S3Config, ServerConfig\n"
        "from aiservices.storage import ModelStore\n"
        "s3 = S3Config(**eval(sys.argv[1]))\n"
        "store = ModelStore(Config(server=ServerConfig(model_dir=Path(sys.argv[2])), s3=s3))\n"
        "print(asyncio.run(store.resolve(sys.argv[3])))\n"
    )
    words = [repr(attrs.asdict(settings)), str(folder), uri]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def end(process: asyncio.subprocess.Process) -> str:
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()[-1]


def damage_second_piece(folder: Path) -> None:
    (path,) = folder.rglob("model.safetensors")
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"not what was written")


async def test_after_a_kill_only_the_rest_is_downloaded(
    bucket: Bucket, s3: S3Config, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    last = "bytes=5242880-"
    proxy.faults.append(stall := Stall(proxy, where=lambda seen: seen.range.startswith(last), times=2))
    process = await start(attrs.evolve(s3, max_concurrency=1), tmp_path)
    await stall.reached.wait()
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert nothing_loads(tmp_path)
    stall.let_go.set()
    proxy.faults.clear()
    proxy.seen.clear()
    damage_second_piece(tmp_path)
    assert read(await store.resolve(URI)) == MODEL
    begins = {seen.range.partition("-")[0] for seen in proxy.seen if is_weights(seen)}
    assert begins == {"bytes=1048576", "bytes=5242880"}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [False, True])
async def test_eight_processes_download_once(
    killed: bool, bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    stall = Stall(proxy, where=lambda seen: seen.range.startswith("bytes=5242880-"))
    proxy.faults.append(stall)
    first = await start(attrs.evolve(s3, max_concurrency=1, read_timeout_s=120.0), tmp_path)
    await stall.reached.wait()
    others = [await start(s3, tmp_path) for _ in range(8 if killed else 7)]
    await proxy.until(lambda: proxy.listings > len(others))
    if killed:
        first.send_signal(signal.SIGKILL)
        await first.communicate()
    stall.let_go.set()
    folders = {await end(process) for process in (others if killed else [first, *others])}
    assert len(folders) == 1
    assert read(Path(folders.pop())) == MODEL
    asked = [seen.range for seen in proxy.seen if is_weights(seen)]
    # Each piece once, and once more the one that the killed process had not got.
    assert len(asked) == len(set(asked)) + killed
    assert proxy.objects.count("config.json") == 1


async def test_a_service_says_how_far_its_download_is(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(stall := Stall(proxy, where=is_weights, after=1000))
    service = make_service(Upper(), shared=attrs.evolve(make_shared(), store=store), model=URI)
    resolve, reported = store.resolve, asyncio.Event()

    def watched(uri: str, on_progress: OnProgress, **named: str) -> Coroutine[Any, Any, Path | None]:
        def noticed(progress: Progress) -> None:
            on_progress(progress)
            reported.set()

        return resolve(uri, noticed, **named)

    monkeypatch.setattr(store, "resolve", watched)
    job = service.submit(JobRequest(input={"text": "hi"}))
    await stall.reached.wait()
    await reported.wait()
    shown = str(service.status(job)["reason"])
    assert shown.startswith("the model is being fetched: ")
    assert shown.endswith(" of 5.5 MiB")
    stall.let_go.set()
    await job.wait_end(30)
    assert job.status.value == "COMPLETED"
    await service.close()
