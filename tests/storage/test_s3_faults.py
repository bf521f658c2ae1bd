"""What can go wrong between a bucket and the disk: each ends whole or in one clear error, and never in half a model."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from traceback import format_exception
from typing import Any

import attrs
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from aiservices.errors import ServiceError
from aiservices.jobs import JobRequest
from aiservices.settings import S3Config
from aiservices.storage import ModelStore, Progress
from tests.fakes import Upper, make_service, make_shared
from tests.storage.conftest import Bucket, make_store, read
from tests.storage.proxy import FaultyProxy, Seen, Stall, cut, error, garbled

URI = "s3://models/org/name/"
MIB = 2**20
WEIGHTS = os.urandom(MIB) * 5 + os.urandom(MIB // 2)
MODEL = {"config.json": b"{}", "model.safetensors": WEIGHTS}

pytestmark = pytest.mark.s3


def weights(seen: Seen) -> bool:
    return seen.path.endswith("model.safetensors")


def nothing_loads(folder: Path) -> bool:
    """Whether no folder calls itself a model."""
    return not [path for path in folder.rglob("*") if path.name == ".aiservices.json"]


# --- what passes ---


@pytest.mark.parametrize(
    "code",
    [("InternalError", 500), ("SlowDown", 503), ("ServiceUnavailable", 503), ("", 502), ("TooManyRequests", 429)],
)
async def test_errors_that_pass_are_waited_out(
    code: tuple[str, int], bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(error(*code, times=4))
    assert read(await store.resolve(URI)) == MODEL


async def test_a_body_that_breaks_off_goes_on_where_it_was(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(cut(proxy, after=300_000, times=12))
    assert read(await store.resolve(URI)) == MODEL
    begins = [int(seen.range.removeprefix("bytes=").partition("-")[0]) for seen in proxy.seen if weights(seen)]
    assert any(begin % MIB for begin in begins), "none went on in the middle of a piece"


async def test_adjacent_pieces_come_in_one_request_that_goes_on_where_it_broke_off(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put_in_parts("model.safetensors", os.urandom(12 * MIB), 5 * MIB)
    proxy.faults.append(cut(proxy, after=2 * MIB + 300_000, times=2))
    store = make_store(tmp_path, attrs.evolve(s3, max_concurrency=1, part_mib=1))
    found = await store.resolve(URI)
    assert read(found) == bucket.files()
    (model,) = await store.models()
    assert model.verified == "etag"
    assert [seen.range.partition("-")[0] for seen in proxy.seen if seen.is_object][:3] == [
        "bytes=0",
        f"bytes={2 * MIB + 300_000}",
        f"bytes={4 * MIB + 600_000}",
    ]
    await store.close()


async def test_a_stream_that_stands_still_is_asked_for_again(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(stall := Stall(proxy, where=weights, after=1000))
    store = make_store(tmp_path, attrs.evolve(s3, read_timeout_s=0.3))
    assert read(await store.resolve(URI)) == MODEL
    assert stall.reached.is_set()
    stall.let_go.set()
    await store.close()


async def test_bytes_that_were_garbled_once_are_fetched_again(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(garbled(proxy, where=weights, times=1))
    assert read(await store.resolve(URI)) == MODEL


@pytest.mark.parametrize("change", ["changed", "removed"])
async def test_what_changes_meanwhile_is_listed_anew(
    change: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put({**MODEL, "more.json": b"old"})

    async def once_begun(seen: Seen, request: web.BaseRequest) -> None:
        if weights(seen):
            proxy.faults.clear()
            if change == "changed":
                await asyncio.to_thread(bucket.put, {"more.json": b"new"})
            else:
                await asyncio.to_thread(bucket.delete, "more.json")

    proxy.faults.append(once_begun)
    wanted = {**MODEL, "more.json": b"new"} if change == "changed" else MODEL
    assert read(await store.resolve(URI)) == wanted
    assert proxy.listings == 2


async def test_a_store_that_ignores_if_match_is_seen_through(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)

    async def other_etag(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not seen.is_object:
            return None
        proxy.faults.clear()
        answer = await proxy.forward(request)
        return web.Response(status=answer.status, headers={**answer.headers, "ETag": '"other"'}, body=answer.body)

    proxy.faults.append(other_etag)
    assert read(await store.resolve(URI)) == MODEL
    assert proxy.listings == 2


async def test_a_store_that_answers_200_to_a_range_is_taken_at_its_bytes(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)

    async def always_200(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        answer = await proxy.forward(request)
        return web.Response(
            status=200 if answer.status == 206 else answer.status, headers=answer.headers, body=answer.body
        )

    proxy.faults.append(always_200)
    assert read(await store.resolve(URI)) == MODEL


# --- what does not ---


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("InternalError", 500, "the store did not answer as it should, after every attempt: ClientError: An error occ"),
        ("SlowDown", 503, "the store did not answer as it should, after every attempt: ClientError: An error occurred"),
        ("ExpiredToken", 400, "the credentials have expired; get new ones"),
        ("InvalidAccessKeyId", 403, "the store does not know the access key (AISERVICES_S3_ACCESS_KEY_ID)"),
        ("SignatureDoesNotMatch", 403, "the secret key does not fit the access key (AISERVICES_S3_SECRET_ACCESS_KEY)"),
        ("AccessDenied", 403, "the keys may not read there"),
        ("RequestTimeTooSkewed", 403, "this machine's clock is wrong: the store refuses the signature's time"),
        ("PermanentRedirect", 301, "the bucket lies in another region (AISERVICES_S3_REGION)"),
        ("MethodNotAllowed", 405, "ClientError: An error occurred (MethodNotAllowed)"),
    ],
)  # fmt: skip
async def test_an_error_that_stays_is_one_line(
    code: str, status: int, reason: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(error(code, status, where=weights))
    with pytest.raises(ServiceError) as caught:
        await store.resolve(URI)
    assert str(caught.value).startswith(f"model '{URI}': {reason}")
    assert "\n" not in str(caught.value)
    assert nothing_loads(tmp_path)
    proxy.faults.clear()
    assert read(await store.resolve(URI)) == MODEL


async def test_wrong_bytes_are_never_kept(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(garbled(proxy, where=weights))
    with pytest.raises(ServiceError, match=r"model\.safetensors: what came does not fit its ETag, 2 times over"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)
    proxy.faults.clear()
    assert read(await store.resolve(URI)) == MODEL


async def test_a_part_of_a_multipart_upload_that_is_wrong_is_found(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put_in_parts("model.safetensors", os.urandom(6 * MIB), 5 * MIB)
    proxy.faults.append(garbled(proxy, where=lambda seen: seen.range.startswith("bytes=5242880-")))
    with pytest.raises(ServiceError, match=r"model\.safetensors: what came does not fit its ETag, 2 times over"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_body_that_always_ends_at_once_is_given_up(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(cut(proxy, after=0))
    with pytest.raises(ServiceError, match="the store did not answer as it should, after every attempt"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_refused_connection_is_one_line_unless_a_copy_is_here(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    store = make_store(tmp_path, s3)
    folder = await store.resolve(URI)
    await proxy.__aexit__()
    assert await store.resolve(URI) == folder
    with pytest.raises(ServiceError, match=r"model 's3://models/other/': the store did not answer .* Could not con"):
        await store.resolve("s3://models/other/")
    await store.close()
    await proxy.__aenter__()


async def test_a_signature_is_in_no_error_and_no_log(bucket: Bucket, store: ModelStore, proxy: FaultyProxy) -> None:
    bucket.put(MODEL)

    async def hang_up(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if weights(seen) and request.transport is not None:
            request.transport.close()
        return None

    proxy.faults.append(hang_up)
    with capture_logs() as logs, pytest.raises(ServiceError) as caught:
        await store.resolve(URI)
    written = f"{''.join(format_exception(caught.value))} {logs}"
    assert "Connection was closed before we received a valid response from endpoint URL" in written
    assert "model.safetensors" in written
    assert "X-Amz-Signature" not in written


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://no-such-bucket/x/", "there is no such bucket"),
        ("s3://models/nothing/", "there is nothing below this prefix"),
        ("s3://models/notes/", "no model lies there: README.md, but no weights (else name ?files=…)"),
        (
            "s3://models/org/name/?files=*.onnx",
            "no file there fits the patterns; there are config.json, model.",
        ),
        ("s3://models/bad/", "the key '../../etc/passwd.bin' cannot be a file below the model's folder; nothing was"),
    ],
)
async def test_what_is_not_there_is_said_to_be_so(
    uri: str, reason: str, bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    bucket.put({"README.md": b"soon"}, "notes/")
    proxy.faults.append(_with_key_outside(proxy))
    bucket.put({"harmless.bin": b"root"}, "bad/")
    with pytest.raises(ServiceError) as caught:
        await store.resolve(uri)
    assert str(caught.value).startswith(f"model '{uri}': {reason}")
    assert not proxy.objects
    assert nothing_loads(tmp_path)


def _with_key_outside(proxy: FaultyProxy) -> Any:
    """Have listings name what no client would let us upload."""

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        answer = await proxy.forward(request)
        body = answer.body.replace(b"harmless.bin", b"../../etc/passwd.bin")
        return web.Response(status=answer.status, headers=answer.headers, body=body)

    return fault


async def test_one_that_always_changes_is_given_up(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    count = iter(range(100))

    async def change(seen: Seen, request: web.BaseRequest) -> None:
        if weights(seen):
            await asyncio.to_thread(bucket.put, {"model.safetensors": WEIGHTS + b"%d" % next(count)})

    proxy.faults.append(change)
    with pytest.raises(ServiceError, match="it changed 3 times while it was downloaded; try again when it is at rest"):
        await store.resolve(URI)
    assert nothing_loads(tmp_path)


async def test_a_disk_that_fills_up_is_one_line(
    bucket: Bucket, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    written = iter(range(100))

    def write(file: int, block: memoryview, offset: int) -> int:
        if next(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, block, offset)

    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr("aiservices.storage.s3.pieces.os.pwrite", write)
        with pytest.raises(ServiceError) as caught:
            await store.resolve(URI)
    assert str(caught.value) == f"model '{URI}': the disk is full"
    assert nothing_loads(tmp_path)
    assert read(await store.resolve(URI)) == MODEL


async def test_room_that_a_large_file_has_not_got_is_missed_before_its_first_byte(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)

    def full(file: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("aiservices.storage.s3.local.SET_ASIDE_BYTES", MIB)
    with monkeypatch.context() as patch:
        patch.setattr("aiservices.storage.s3.local._allocate", full)
        with pytest.raises(ServiceError, match=r"the disk is full$"):
            await store.resolve(URI)
    assert proxy.objects == []
    assert nothing_loads(tmp_path)
    assert read(await store.resolve(URI)) == MODEL  # with room that was set aside


# --- breaks and kills ---


async def test_who_is_cancelled_lets_go_and_the_next_goes_on(
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
    """Bring a model in a process of its own, which then prints the folder."""
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


def hurt_second_piece(folder: Path) -> None:
    (path,) = folder.rglob("model.safetensors")
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"not what was written")


async def test_after_kill_9_only_the_rest_is_fetched(
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
    hurt_second_piece(tmp_path)
    assert read(await store.resolve(URI)) == MODEL
    begins = {seen.range.partition("-")[0] for seen in proxy.seen if weights(seen)}
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
    asked = [seen.range for seen in proxy.seen if weights(seen)]
    # Each piece once, and once more the one that the killed process had not got.
    assert len(asked) == len(set(asked)) + killed
    assert proxy.objects.count("config.json") == 1


# --- what the callers see ---


async def test_a_service_says_how_far_its_download_is(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    proxy.faults.append(stall := Stall(proxy, where=weights, after=1000))
    service = make_service(Upper(), shared=attrs.evolve(make_shared(), store=store), model=URI)
    tell, told = service._on_fetching, asyncio.Event()

    def noticed(progress: Progress) -> None:
        tell(progress)
        told.set()

    monkeypatch.setattr(service, "_on_fetching", noticed)
    job = service.submit(JobRequest(input={"text": "hi"}))
    await stall.reached.wait()
    await told.wait()
    shown = str(service.status(job)["reason"])
    assert shown.startswith("the model is being fetched: ")
    assert shown.endswith(" of 5.5 MiB")
    stall.let_go.set()
    await service.wait(job, 30)
    assert job.status.value == "COMPLETED"
    await service.close()
