from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from aiservices.errors import ConfigError
from aiservices.keys import KeyRing
from aiservices.settings import ServerConfig

SECRET = "0123456789abcdef"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def read(server: ServerConfig) -> KeyRing:
    keys = KeyRing(server)
    keys.read()
    return keys


def ring(path: Path, text: str, *plain: str) -> KeyRing:
    path.write_text(text)
    return read(ServerConfig(api_keys=plain, keys_file=str(path)))


def test_plain_keys_are_operators_of_one_tenant() -> None:
    caller = read(ServerConfig(api_keys=("one", "two"))).find(b"two")
    assert caller is not None
    assert (caller.tenant, caller.key, caller.operator) == ("default", "key-2", True)


@pytest.mark.parametrize("given", [f'sha256 = "{DIGEST}"', f'key = "{SECRET}"'])
def test_a_key_of_the_file_is_known_by_itself_or_its_digest(tmp_path: Path, given: str) -> None:
    keys = ring(tmp_path / "keys.toml", f"[tenants.shop.keys.backend]\n{given}\n")
    caller = keys.find(SECRET.encode())
    assert caller is not None
    assert (caller.tenant, caller.key, caller.operator) == ("shop", "backend", False)
    assert keys.find(DIGEST.encode()) is None
    assert SECRET not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tenants", "is no TOML"),
        ('[tenants.shop.keys.a]\nkey = "short"\n', r"\[tenants\.shop\.keys\.a\] key: expected at least 16 characters"),
        ("[tenants.shop.keys.a]\n", r"\[tenants\.shop\.keys\.a\]: expected one of `sha256` and `key`"),
        ("[tenants.shop]\nmax_jobs = 3\n", r"unknown field `max_jobs` - at `\$\.tenants\[\.\.\.\]`"),
        (f'[tenants.a.keys.a]\nkey = "{SECRET}"\n[tenants.b.keys.b]\nkey = "{SECRET}"\n', "the key is that of 'a'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        ring(tmp_path / "keys.toml", text)
    assert str(refused.value).startswith(str(tmp_path / "keys.toml"))
    assert "short" not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read(ServerConfig(keys_file=str(tmp_path / "none.toml")))


def write(path: Path, text: str, changed_at_s: int) -> None:
    path.write_text(text)
    os.utime(path, (changed_at_s, changed_at_s))


async def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = await asyncio.to_thread(ring, path, f'[tenants.shop.keys.a]\nkey = "{SECRET}"\n')
    for version, text in enumerate(("[tenants", f'[tenants.shop.keys.b]\nkey = "{SECRET[::-1]}"\n')):
        assert keys.find(SECRET.encode()) is not None
        await asyncio.to_thread(write, path, text, version)
        await keys.refresh()
    assert keys.find(SECRET.encode()) is None
    assert keys.find(SECRET[::-1].encode()) is not None
    await asyncio.to_thread(path.unlink)
    await keys.refresh()
    assert keys.find(SECRET[::-1].encode()) is not None
