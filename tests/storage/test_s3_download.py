from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import attrs
import pytest

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage import ModelStore, Progress
from aiservices.storage.s3.checksum import etag_of_parts, usual_part_bytes
from aiservices.storage.s3.local import _allocate
from aiservices.storage.s3.location import Location, chosen, parse
from aiservices.storage.s3.remote import RemoteObject, check_path, fingerprint, parse_manifest, write_manifest
from tests.storage.conftest import KEYS, Bucket, make_store, read
from tests.storage.proxy import FaultyProxy, short_pages

URI = "s3://models/org/name/"
MIB = 2**20
WEIGHTS = os.urandom(MIB) * 3 + b"the rest"
MODEL = {"config.json": b"{}", "sub/weights.safetensors": WEIGHTS, "empty.txt": b""}

pytestmark = pytest.mark.s3


# --- what a URI names ---


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("s3://models", ("models", "", (), ())),
        ("s3://models/", ("models", "", (), ())),
        ("s3://models/a/b/", ("models", "a/b", (), ())),
        ("s3://models/a?files=*.json,x*&exclude=*.md", ("models", "a", ("*.json", "x*"), ("*.md",))),
    ],
)
def test_a_uri_names_bucket_prefix_and_patterns(uri: str, location: tuple[object, ...]) -> None:
    found = parse(uri)
    assert (found.bucket, found.prefix, found.files, found.exclude) == location


@pytest.mark.parametrize("uri", ["s3://UP_", "s3:///x", "s3://b/x?flies=a", "s3://b/a/../b", "s3://b//a"])
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(ServiceError, match=r"expected s3://bucket/prefix/, and \?files=a,b&exclude=c if not all of it"):
        parse(uri)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ["a.safetensors", "a.json", "sub/b.bin", "sub/c.json"]),
        ("?files=*.bin", ["a.bin", "sub/b.bin"]),
        ("?exclude=*.json,*.safetensors", ["a.bin", "sub/b.bin"]),
        ("?files=sub/*", ["sub/b.bin", "sub/c.json"]),
    ],
)
def test_patterns_choose_and_bin_gives_way_to_safetensors(query: str, wanted: list[str]) -> None:
    paths = ["a.safetensors", "a.bin", "a.json", "a.bin.index.json", "sub/b.bin", "sub/c.json"]
    found = chosen(parse(f"s3://models/x/{query}"), paths)
    assert [path for path in found if path != "a.bin.index.json"] == wanted


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//x", "./x", "a\0", "..", "a\\b", "x" * 256, "a\nb"])
def test_a_key_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ServiceError, match="cannot be a file below the model's folder; nothing was downloaded"):
        check_path(path)


def test_any_change_makes_another_fingerprint() -> None:
    one, other = RemoteObject("a", 1, "e"), RemoteObject("b", 1, "e")
    changed = [attrs.evolve(one, size=2), attrs.evolve(one, etag="f")]
    listings = [[one], [other], [changed[0]], [changed[1]], [one, other]]
    assert len({fingerprint(objects) for objects in listings}) == len(listings)
    assert fingerprint([one, other]) == fingerprint([other, one])


def test_a_manifest_reads_as_it_was_written_and_as_sha256sum_writes() -> None:
    sums = {"a b.json": "0" * 64, "sub/c": "f" * 64}
    assert parse_manifest(write_manifest(sums)) == sums
    assert parse_manifest(f"{'a' * 64} *./x\nno sum\n") == {"x": "a" * 64}


def test_the_part_size_of_common_uploaders_is_guessed() -> None:
    assert usual_part_bytes(1024 * MIB, 128) == 8 * MIB
    assert usual_part_bytes(20 * MIB, 2) == 16 * MIB
    assert usual_part_bytes(1000, 7) is None


# --- a whole copy, once ---


async def test_everything_below_a_prefix_is_brought_here_once(
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
    told: list[Progress] = []
    await store.resolve(URI, told.append)
    assert told[0] == Progress(0, 3, 0, len(WEIGHTS) + 2)
    assert told[-1] == Progress(3, 3, len(WEIGHTS) + 2, len(WEIGHTS) + 2)
    assert [progress.bytes for progress in told] == sorted(progress.bytes for progress in told)
    bucket.put({"config.json": b"[]"})
    told.clear()
    await store.resolve(URI, told.append)
    assert told[0] == Progress(2, 3, len(WEIGHTS), len(WEIGHTS) + 2)


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


async def test_what_is_no_model_needs_no_weights(bucket: Bucket, store: ModelStore, tmp_path: Path) -> None:
    bucket.put({"anna.wav": b"la", "anna.json": b"{}", "sub/bob.wav": b"lala"}, prefix="voices/")
    uri = "s3://models/voices/"
    with pytest.raises(ServiceError, match=r"no model lies there: .*, but no weights"):
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
async def test_an_option_is_named_where_its_folder_cannot_be_had(
    bucket: Bucket, store: ModelStore, uri: str, reason: str
) -> None:
    for ask in (store.resolve, store.describe):
        with pytest.raises(ServiceError) as caught:
            await ask(uri, option="shelf")
        assert str(caught.value).startswith(reason)


async def test_what_was_made_of_unchanged_files_goes_along_to_the_next_version(
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


async def test_a_file_that_lost_its_end_is_mended(bucket: Bucket, store: ModelStore, proxy: FaultyProxy) -> None:
    bucket.put(MODEL)
    folder = await store.resolve(URI)
    assert folder is not None
    os.truncate(folder / "sub/weights.safetensors", 5)
    proxy.seen.clear()
    assert await store.resolve(URI) == folder
    assert read(folder) == MODEL
    assert set(proxy.objects) == {"weights.safetensors"}


async def test_a_version_that_a_power_cut_may_have_hurt_is_fetched_again(
    bucket: Bucket, s3: S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy
) -> None:
    bucket.put(MODEL)
    monkeypatch.setattr("aiservices.storage.s3.bring.flush", lambda folder: None)
    store = make_store(tmp_path, s3)
    folder = await store.resolve(URI)
    assert folder is not None
    await store.close()
    monkeypatch.setattr("aiservices.storage.s3.local.this_machine", lambda: "after the next boot")
    (folder / "sub/weights.safetensors").write_bytes(bytes(len(WEIGHTS)))
    assert await store.resolve(URI) == folder
    assert read(folder) == MODEL
    await store.close()


# --- checksums ---


async def test_objects_uploaded_in_parts_are_checked_by_their_parts(bucket: Bucket, store: ModelStore) -> None:
    data = os.urandom(11 * MIB)
    bucket.put_in_parts("big.safetensors", data, 5 * MIB)
    assert read(await store.resolve(URI)) == {"big.safetensors": data}
    (model,) = await store.models()
    assert model.verified == "etag"


def test_the_etag_of_parts_is_what_s3_computes() -> None:
    digests = [hashlib.md5(part).digest() for part in (b"a", b"b")]
    assert etag_of_parts(digests) == hashlib.md5(b"".join(digests)).hexdigest() + "-2"


async def test_a_manifest_in_the_prefix_is_what_counts(bucket: Bucket, store: ModelStore) -> None:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in MODEL.items()}
    bucket.put({**MODEL, "SHA256SUMS": write_manifest(sums).encode()})
    folder = await store.resolve(URI)
    assert folder is not None
    wanted = {**MODEL, "SHA256SUMS": write_manifest(sums).encode()}
    assert read(folder) == wanted


async def test_a_manifest_that_does_not_fit_is_an_error(bucket: Bucket, store: ModelStore, tmp_path: Path) -> None:
    bucket.put({**MODEL, "SHA256SUMS": write_manifest({"config.json": "0" * 64}).encode()})
    with pytest.raises(
        ServiceError, match=r"config\.json: what came does not fit the sum in the manifest, 2 times over"
    ):
        await store.resolve(URI)
    assert not [path for path in _files(tmp_path) if path.name == ".aiservices.json"]


async def test_a_manifest_that_names_more_is_an_upload_that_broke_off(bucket: Bucket, store: ModelStore) -> None:
    bucket.put({**MODEL, "SHA256SUMS": write_manifest({"more.safetensors": "0" * 64}).encode()})
    with pytest.raises(ServiceError, match=r"SHA256SUMS names more\.safetensors, not in the bucket: an upload broke"):
        await store.resolve(URI)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- room ---


async def test_a_full_disk_is_found_before_the_download(
    bucket: Bucket, store: ModelStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(MODEL)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("aiservices.storage.cache.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ServiceError, match=r"3\.0 MiB are missing and 1000 B are free on the disk of .*models rm"):
        await store.resolve(URI)
    assert not proxy.objects


async def test_without_the_package_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    store = make_store(tmp_path, KEYS)
    with pytest.raises(ServiceError, match=r"model 's3://models/x/': the package aioboto3 is not installed \(scripts/"):
        await store.resolve("s3://models/x/")


def test_a_location_names_itself_without_patterns() -> None:
    assert Location("s3://b/p?files=x", "b", "p", ("x",)).name == "s3://b/p/"


def test_room_is_set_aside_where_the_file_system_can_and_else_not(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        _allocate(file.fileno(), MIB)
    assert (tmp_path / "large").stat().st_size == MIB
    assert (tmp_path / "large").stat().st_blocks * 512 >= MIB
    reading, writing = os.pipe()  # neither has room to set aside
    _allocate(writing, MIB)
    os.close(reading)
    os.close(writing)
