"""A complete copy of a prefix, once; and again when it changes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage import ModelStore, Progress
from tests.storage.conftest import KEYS, Bucket, make_store, read
from tests.storage.proxy import FaultyProxy, short_pages
from tests.storage.s3.samples import MIB, URI

WEIGHTS = os.urandom(MIB) * 3 + b"the rest"
MODEL = {"config.json": b"{}", "sub/weights.safetensors": WEIGHTS, "empty.txt": b""}

pytestmark = pytest.mark.s3


async def test_everything_below_a_prefix_is_downloaded_once(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put({**MODEL, "": b"", "sub/": b""})
    bucket.put({"other.bin": b"no"}, prefix="org/name2/")
    assert await store.describe(URI) == "to be downloaded: 3 files, 3.0 MiB at most"
    folder = await store.resolve("s3://models/org/name")
    assert read(folder) == MODEL
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "s3")
    assert {seen.range for seen in proxy.seen if "weights" in seen.path} == {
        f"bytes={begin}-{min(begin + MIB, len(WEIGHTS)) - 1}" for begin in range(0, len(WEIGHTS), MIB)
    }
    proxy.seen.clear()
    assert await make_store(tmp_path, store._s3).resolve(URI) == folder
    assert (len(proxy.seen), proxy.listings) == (1, 1)
    assert await store.describe(URI) == f"in {folder}"


async def test_two_services_with_one_model_download_it_once(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    first, second, third = await asyncio.gather(*(store.resolve("s3://models/org/name" + end) for end in ("", "", "/")))
    assert first == second == third
    assert sorted(proxy.objects) == ["config.json"] + ["weights.safetensors"] * 4


async def test_a_long_listing_is_read_to_its_end(bucket: Bucket, store: ModelStore, proxy: FaultyProxy) -> None:
    bucket.put({f"{number}.bin": b"" for number in range(5)})
    proxy.faults.append(short_pages(proxy, 2))
    assert len(read(await store.resolve(URI))) == 5
    assert proxy.listings == 3


async def test_progress_counts_what_is_there_already(bucket: Bucket, store: ModelStore) -> None:
    bucket.put(MODEL)
    reports: list[Progress] = []
    await store.resolve(URI, reports.append)
    assert reports[0] == Progress(0, 3, 0, len(WEIGHTS) + 2)
    assert reports[-1] == Progress(3, 3, len(WEIGHTS) + 2, len(WEIGHTS) + 2)
    assert [progress.bytes for progress in reports] == sorted(progress.bytes for progress in reports)
    bucket.put({"config.json": b"[]"})
    reports.clear()
    await store.resolve(URI, reports.append)
    assert reports[0] == Progress(2, 3, len(WEIGHTS), len(WEIGHTS) + 2)


async def test_only_what_changed_is_fetched_again(
    bucket: Bucket, s3: S3Config, store: ModelStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    bucket.put(MODEL)
    old = await store.resolve(URI)
    assert old is not None
    bucket.put({"config.json": b"[]", "new.json": b"new"})
    bucket.delete("empty.txt")
    proxy.seen.clear()
    new = await store.resolve(URI)
    assert new is not None
    assert sorted(proxy.objects) == ["config.json", "new.json"]
    assert read(new) == {"config.json": b"[]", "new.json": b"new", "sub/weights.safetensors": WEIGHTS}
    # The old version is in use, so it stays as it was; the file that did not change is there once.
    assert read(old) == MODEL
    assert (old / "sub/weights.safetensors").samefile(new / "sub/weights.safetensors")
    await store.close()
    bucket.put({"config.json": b"newer"})
    again = make_store(tmp_path, s3)
    newest = await again.resolve(URI)
    assert [model.folder for model in await again.models()] == [newest]
    await again.close()


async def test_the_folder_of_an_option_needs_no_weights(bucket: Bucket, store: ModelStore, tmp_path: Path) -> None:
    bucket.put({"anna.wav": b"la", "anna.json": b"{}", "sub/bob.wav": b"lala"}, prefix="voices/")
    uri = "s3://models/voices/"
    with pytest.raises(ServiceError, match=r"no weights there, only "):
        await store.resolve(uri)
    assert await store.describe(uri, option="shelf") == "to be downloaded: 3 files, 8 B at most"
    folder = await store.resolve(uri, option="shelf")
    assert read(folder) == {"anna.wav": b"la", "anna.json": b"{}", "sub/bob.wav": b"lala"}
    assert await store.describe(uri, option="shelf") == f"in {folder}"
    assert read(await store.resolve(f"{uri}?files=*.wav&exclude=sub/*", option="shelf")) == {"anna.wav": b"la"}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://nowhere/x/", "options.shelf: 's3://nowhere/x/': there is no such bucket"),
        ("s3://models/none/", "options.shelf: 's3://models/none/': there is nothing below this prefix"),
        ("s3://models/x/?file=y", "options.shelf: 's3://models/x/?file=y': expected s3://bucket/prefix/, and ?files=a"),
    ],
)
async def test_an_option_is_named_where_its_folder_cannot_be_downloaded(
    bucket: Bucket, store: ModelStore, uri: str, reason: str
) -> None:
    for ask in (store.resolve, store.describe):
        with pytest.raises(ServiceError) as caught:
            await ask(uri, option="shelf")
        assert str(caught.value).startswith(reason)


async def test_what_was_derived_from_unchanged_files_is_kept_in_the_next_version(
    bucket: Bucket, s3: S3Config, proxy: FaultyProxy, tmp_path: Path
) -> None:
    clips = {"anna.wav": b"la", "bob.wav": b"lala", "carl.wav": b"lalala", "sub/dora.v2.wav": b"l"}
    bucket.put(clips, prefix="voices/")
    first = make_store(tmp_path, s3)
    old = await first.resolve("s3://models/voices/", option="shelf")
    assert old is not None
    made = ("anna.1.voice", "bob.1.voice", "carl.1.voice", "sub/dora.v2.1.voice", "sub/other.voice", ".anna.tmp")
    for name in made:
        (old / name).write_bytes(name.encode())
    proxy.seen.clear()
    # They are no part of the version, so it is whole as before.
    assert await first.resolve("s3://models/voices/", option="shelf") == old
    assert proxy.objects == []
    assert [model.verified for model in await first.models()] == ["etag"]
    await first.close()

    bucket.put({"bob.wav": b"changed", "eve.wav": b"new"}, prefix="voices/")
    bucket.delete("carl.wav", prefix="voices/")
    second = make_store(tmp_path, s3)
    new = await second.resolve("s3://models/voices/", option="shelf")
    assert new is not None
    assert sorted(proxy.objects) == ["bob.wav", "eve.wav"]
    kept = {"anna.1.voice": b"anna.1.voice", "sub/dora.v2.1.voice": b"sub/dora.v2.1.voice"}
    there = {name: data for name, data in clips.items() if name != "carl.wav"} | {
        "bob.wav": b"changed",
        "eve.wav": b"new",
    }
    assert read(new) == there | kept
    assert [model.folder for model in await second.models()] == [new]
    await second.close()


async def test_a_file_that_lost_its_end_is_downloaded_again(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    folder = await store.resolve(URI)
    assert folder is not None
    os.truncate(folder / "sub/weights.safetensors", 5)
    proxy.seen.clear()
    assert await store.resolve(URI) == folder
    assert read(folder) == MODEL
    assert set(proxy.objects) == {"weights.safetensors"}


async def test_a_version_that_a_power_cut_may_have_damaged_is_downloaded_again(
    bucket: Bucket, s3: S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    monkeypatch.setattr("aiservices.storage.s3.fetch.flush", lambda folder: None)
    store = make_store(tmp_path, s3)
    folder = await store.resolve(URI)
    assert folder is not None
    await store.close()
    monkeypatch.setattr("aiservices.storage.s3.marker.this_machine", lambda: "after the next boot")
    (folder / "sub/weights.safetensors").write_bytes(bytes(len(WEIGHTS)))
    assert await store.resolve(URI) == folder
    assert read(folder) == MODEL
    await store.close()


async def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    store = make_store(tmp_path, KEYS)
    with pytest.raises(ServiceError, match=r"model 's3://models/x/': the package aioboto3 is not installed \(scripts/"):
        await store.resolve("s3://models/x/")
