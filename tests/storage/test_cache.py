from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiservices.errors import ServiceError
from aiservices.storage.cache import Cache
from aiservices.storage.lease import Lease
from aiservices.storage.s3.folder import ModelFolder
from aiservices.storage.s3.location import parse
from aiservices.storage.s3.marker import Marker, StoredFile

MIB = 2**20


def store(model_dir: Path, name: str, mib: int, used_at: float, version: str = "v1") -> Path:
    """Store a complete model of a bucket that was last used at a given time."""
    folder = ModelFolder(model_dir / "s3", parse(f"s3://models/{name}/"), "")
    folder.partial.mkdir(parents=True)
    (folder.partial / "w.bin").write_bytes(bytes(mib * MIB))
    files = {"w.bin": StoredFile(mib * MIB, "e", "etag")}
    found = folder.commit(version, Marker(source=f"s3://models/{name}/", files=files, fetched_at=used_at))
    os.utime(found, (used_at, used_at))
    return found


def names(cache: Cache) -> list[str]:
    return [model.name.split("/")[-2] for model in cache.models()]


def test_the_list_describes_each_model(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    assert cache.models() == []
    folder = store(tmp_path, "a", 2, used_at=100)
    (tmp_path / "hub" / "models--org--name" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "models--org--name" / "blobs" / "x").write_bytes(b"x" * 5000)
    hub, model = sorted(cache.models(), key=lambda found: found.name)
    assert (model.name, model.folder, model.bytes) == ("s3://models/a/", folder, 2 * MIB)
    assert (model.last_used, model.verified, model.in_use) == (100, "etag", False)
    assert (hub.name, hub.bytes, hub.verified) == ("hf://org/name", 5000, "size")


def test_the_model_used_longest_ago_is_evicted(tmp_path: Path) -> None:
    for name, used_at in (("old", 1), ("older", 0), ("new", 2)):
        store(tmp_path, name, 2, used_at)
    cache = Cache(tmp_path, 7 * MIB)
    cache.make_room(MIB)
    assert names(cache) == ["new", "old", "older"]
    cache.make_room(2 * MIB)
    assert names(cache) == ["new", "old"]
    cache.make_room(5 * MIB)
    assert names(cache) == ["new"]


def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    folder = store(tmp_path, "old", 2, 0)
    store(tmp_path, "new", 2, 1)
    mine, other = Cache(tmp_path, 4 * MIB), Cache(tmp_path, 4 * MIB)
    other.use(folder)
    mine.make_room(2 * MIB)
    assert names(mine) == ["old"]
    with pytest.raises(ServiceError, match=r"3\.0 MiB are missing and 2\.0 MiB are left of cache_gib; .*models rm"):
        mine.make_room(3 * MIB)
    with pytest.raises(ServiceError, match="s3://models/old/ is in use; stop the process that runs it first"):
        mine.remove("s3://models/old/")
    other.close(flush=True)
    mine.make_room(4 * MIB)
    assert names(mine) == []


def test_without_a_budget_nothing_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, "old", 2, 0)
    monkeypatch.setattr("aiservices.storage.cache.shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    cache = Cache(tmp_path, 0)
    with pytest.raises(ServiceError, match=r"1\.0 MiB are missing and 0 B are free on the disk of "):
        cache.make_room(MIB)
    assert names(cache) == ["old"]


def test_use_makes_it_the_last_used(tmp_path: Path) -> None:
    old = store(tmp_path, "old", 1, 0)
    store(tmp_path, "new", 1, 1)
    cache = Cache(tmp_path, 0)
    cache.use(old)
    assert next((model.folder, model.in_use) for model in cache.models()) == (old, True)
    cache.release(old)
    assert next((model.folder, model.in_use) for model in cache.models()) == (old, False)


def test_a_running_download_is_in_use_and_an_interrupted_one_is_not(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "s3", parse("s3://models/half/"), "")
    folder.partial.mkdir(parents=True)
    (folder.partial / "w.bin").write_bytes(bytes(MIB))
    cache = Cache(tmp_path, MIB)
    lease = Lease(folder.lease)
    assert lease.acquire()
    (model,) = cache.models()
    assert (model.verified, model.in_use, model.bytes) == ("partial", True, MIB)
    lease.release()
    cache.make_room(MIB)
    assert cache.models() == []


def test_a_model_is_removed_by_name_or_folder(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    store(tmp_path, "a", 1, 0, "v1")
    store(tmp_path, "a", 1, 1, "v2")
    folder = store(tmp_path, "b", 1, 0)
    assert len(cache.remove("s3://models/a")) == 2
    assert cache.remove(str(folder))[0].folder == folder
    assert list((tmp_path / "s3").rglob("w.bin")) == []
    with pytest.raises(ServiceError, match="no model 's3://models/a' is here"):
        cache.remove("s3://models/a")
