"""The keys that callers come with: plain ones from the settings, named ones of tenants from a file.

The file, read again when it changes::

    [tenants.shop.keys.backend]
    sha256 = "…"
    jobs_per_minute = 600
    max_queued = 1000
    max_running = 4
"""

from __future__ import annotations

import asyncio
import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from aiservices.callers import Caller
from aiservices.errors import ConfigError
from aiservices.logs import get_logger
from aiservices.quotas import NO_LIMITS, KeyId, KeyLimits
from aiservices.settings import ServerConfig

DEFAULT_TENANT = "default"
"""Tenant of the plain ``api_keys``, which are operators' keys."""

MIN_KEY_LENGTH = 16
"""Shortest key of a file in characters: 64 bits as hexadecimal. What is guessed by trying is shorter."""

WATCH_EVERY_S = 2.0
"""How often the file's time of change is looked at."""

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

log = get_logger(__name__)


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    key: str | None = None
    operator: bool = False
    jobs_per_minute: Annotated[float, Meta(gt=0)] | None = None
    max_queued: Annotated[int, Meta(ge=1)] | None = None
    max_running: Annotated[int, Meta(ge=1)] | None = None

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(jobs_per_minute=self.jobs_per_minute, max_queued=self.max_queued, max_running=self.max_running)


class _Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[_Name, _Key] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: dict[_Name, _Tenant] = {}


class KeyRing:
    """Knows a caller by its key. Holds digests only.

    Args:
        server: names the plain keys and the file.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._plain = server.api_keys
        self._path = Path(server.keys_file) if server.keys_file else None
        self.needed = server.needs_keys
        """Whether callers need a key."""
        self._changed_at: tuple[int, int] | None = None
        self._callers: Mapping[bytes, Caller] = {}
        self.limits: Mapping[KeyId, KeyLimits] = {}
        """What each key may ask for, of those that may not ask for everything."""

    @property
    def count(self) -> int:
        """How many keys there are."""
        return len(self._callers)

    def find(self, given: bytes) -> Caller | None:
        """Return whose key it is.

        The digest is looked up, not compared byte by byte: the time may tell of digests, which nobody can choose, and
        so nothing of a key.
        """
        return self._callers.get(hashlib.sha256(given).digest())

    def read(self) -> None:
        """Read every key there is. Blocks.

        Raises:
            ConfigError: the file cannot be read, or is wrong; names file and place, never a key.
        """
        self._changed_at = self._change()
        self._callers, self.limits = self._read()

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Read the file again whenever it changes, until cancelled. A broken one is logged and changes nothing.

        Args:
            on_change: told, on the event loop, that there are other keys or limits.
        """
        while self._path is not None:
            await asyncio.sleep(WATCH_EVERY_S)
            if await self.refresh():
                on_change()

    async def refresh(self) -> bool:
        """Read the file again, on a thread, if it has changed.

        Returns:
            Whether there are other keys or limits now.
        """
        changed_at = await asyncio.to_thread(self._change)
        if changed_at == self._changed_at:
            return False
        self._changed_at = changed_at
        try:
            self._callers, self.limits = await asyncio.to_thread(self._read)
        except ConfigError as error:
            log.error("keys.not_read", reason=str(error), kept=len(self._callers))
            return False
        log.info("keys.read", keys=len(self._callers))
        return True

    def _change(self) -> tuple[int, int] | None:
        """What tells one version of the file from another."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)

    def _read(self) -> tuple[Mapping[bytes, Caller], Mapping[KeyId, KeyLimits]]:
        tenants = {} if self._path is None else _read_file(self._path)
        callers = {
            hashlib.sha256(key.encode()).digest(): Caller(tenant=DEFAULT_TENANT, key=f"key-{number}", operator=True)
            for number, key in enumerate(self._plain, start=1)
        }
        for digest, caller, where in _callers(tenants, self._path):
            if digest in callers:
                raise ConfigError(f"{where}: the key is that of {callers[digest].key!r} as well")
            callers[digest] = caller
        limits = {(name, each): key.limits for name, tenant in tenants.items() for each, key in tenant.keys.items()}
        return callers, {key_id: each for key_id, each in limits.items() if each != NO_LIMITS}


def _read_file(path: Path) -> Mapping[str, _Tenant]:
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File).tenants
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def _callers(tenants: Mapping[str, _Tenant], path: Path | None) -> Iterator[tuple[bytes, Caller, str]]:
    for name, tenant in tenants.items():
        for key_name, key in tenant.keys.items():
            where = f"{path}: [tenants.{name}.keys.{key_name}]"
            yield _digest(key, where), Caller(tenant=name, key=key_name, operator=key.operator), where


def _digest(key: _Key, where: str) -> bytes:
    if (key.sha256 is None) == (key.key is None):
        raise ConfigError(f"{where}: expected one of `sha256` and `key`")
    if key.sha256 is not None:
        return bytes.fromhex(key.sha256)
    assert key.key is not None
    if len(key.key) < MIN_KEY_LENGTH:
        raise ConfigError(f"{where} key: expected at least {MIN_KEY_LENGTH} characters")
    return hashlib.sha256(key.key.encode()).digest()
