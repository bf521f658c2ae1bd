"""Reads the settings: ``services.toml``, one profile of it, and what the environment overrides.

The file has the tables ``[server]``, ``[fetch]``, ``[webhook]``, ``[s3]``, ``[outputs]``, ``[journal]``,
``[services.NAME]`` and ``[profiles.NAME.services]``. A profile names the services that run and may override any of
their settings. What can stand in a table is in ``aiservices.settings``; anything else is an error that suggests the
nearest right word.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import attrs
import msgspec

from aiservices.environment import CONFIG_VARIABLE, read_environment
from aiservices.errors import ConfigError, nearest
from aiservices.settings import (
    Config,
    FetchConfig,
    JournalConfig,
    OutputsConfig,
    S3Config,
    ServerConfig,
    ServiceConfig,
    WebhookConfig,
)

DEFAULT_PATH = Path("services.toml")

T = TypeVar("T")

_TABLES: Mapping[str, type[Any]] = {
    "server": ServerConfig,
    "fetch": FetchConfig,
    "webhook": WebhookConfig,
    "s3": S3Config,
    "outputs": OutputsConfig,
    "journal": JournalConfig,
}
_FORMS: Mapping[str, str] = {
    "handler": 'expected a class as "module:Class"',
    "device": "expected 'auto', 'cpu', 'cuda' or 'cuda:N'",
}
_BOUND = re.compile(r"(?:int|float) (?P<bound>>=|<=|>) (?P<number>\S+)$")
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than"}
_SERVICE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
_RESERVED_NAMES = frozenset({"api", "v1", "v2", "livez", "readyz", "ping", "metrics", "static"})


@attrs.frozen
class _Settings:
    """The values of one table, and for messages where each was written.

    Attributes:
        places: key -> file and table, or environment variable.
        lenient: keys whose values came as strings, from the environment ("8001" is a port).
    """

    values: Mapping[str, Any]
    places: Mapping[str, str]
    lenient: frozenset[str] = frozenset()


def load_config(path: Path | None, environ: Mapping[str, str], profile: str | None = None) -> Config:
    """Read the settings file, choose a profile and apply the environment.

    Every profile is checked, so that a slip in one shows before the day it is needed.

    Args:
        path: the file; None takes ``AISERVICES_CONFIG`` or ``services.toml`` in the working directory.
        environ: the environment, passed in so that tests need not touch the real one.
        profile: overrides the file's and the environment's choice.

    Raises:
        ConfigError: one line that names file, table and key.
    """
    source = settings_path(path, environ)
    document = _read(source)
    _check_keys(document, [*_TABLES, "services", "profiles"], where=f"{source}")
    overrides = read_environment(environ)
    built = {name: _build_table(name, document, overrides, source) for name in _TABLES}
    _check_bodies(built["server"], source)
    chosen = profile or built["server"].profile
    profiles = _build_profiles(document, source)
    if chosen not in profiles:
        asked = "--profile" if profile else overrides.get(("server", "profile"), ("",))[0] or "[server] profile"
        raise ConfigError(f"{source}: no profile {chosen!r} ({asked}){nearest(chosen, profiles)}")
    return Config(**built, profile=chosen, services=profiles[chosen], profiles=tuple(profiles))


def settings_path(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the settings file: the one that is named, else ``AISERVICES_CONFIG``, else ``services.toml`` here."""
    return path or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)


def _check_bodies(server: ServerConfig, source: Path) -> None:
    """One body alone has to fit: it would be refused for ever."""
    largest = max(server.max_run_body_bytes, server.max_runsync_body_bytes)
    if server.max_bodies_bytes < largest:
        where = f"{source}: [server] max_bodies_bytes"
        raise ConfigError(f"{where}: expected at least {largest}, what one body may have")


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file; name one with --config or {CONFIG_VARIABLE}") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def _table(parent: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = parent.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table")
    return value


def _check_keys(table: Mapping[str, Any], known: Iterable[str], *, where: str) -> None:
    words = list(known)
    for key in table:
        if key not in words:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, words)}")


def _build_table(
    name: str, document: Mapping[str, Any], overrides: Mapping[tuple[str, str], tuple[str, Any]], source: Path
) -> Any:
    """Build one of the plain tables, the environment over the file."""
    where = f"{source}: [{name}]"
    table = _table(document, name, where)
    _check_keys(table, _keys(_TABLES[name]), where=where)
    here = {key: found for (owner, key), found in overrides.items() if owner == name}
    return _build(
        _TABLES[name],
        _Settings(
            values={**table, **{key: value for key, (_, value) in here.items()}},
            places={
                **{key: f"{where} {key}" for key in table},
                **{key: f"environment: {variable}" for key, (variable, _) in here.items()},
            },
            lenient=frozenset(here),
        ),
    )


def _build(cls: type[T], settings: _Settings) -> T:
    types = get_type_hints(cls, include_extras=True)
    return cls(**{key: _convert(key, value, types[key], settings) for key, value in settings.values.items()})


def _convert(key: str, value: Any, kind: Any, settings: _Settings) -> Any:
    try:
        converted = msgspec.convert(value, kind, strict=key not in settings.lenient, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        reason = _explain(key, value, kind, str(error))
        if key in settings.lenient:
            reason = reason.removesuffix(", got str")  # everything in the environment is a string
        raise ConfigError(f"{settings.places[key]}: {reason}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{settings.places[key]}: expected a finite number")
    return converted


def _decode_path(kind: type[Any], value: Any) -> Path:
    """The one type here that msgspec does not know."""
    if kind is not Path or not isinstance(value, str) or not value:
        raise msgspec.ValidationError("Expected a path")
    return Path(value)


def _explain(key: str, value: Any, kind: Any, reason: str) -> str:
    if "matching regex" in reason:
        return _FORMS[key]
    if reason.startswith("Invalid enum value"):
        choices = [str(choice) for choice in get_args(kind)]
        return f"unknown value {value!r}{nearest(str(value), choices)}"
    reason = _BOUND.sub(_bound_in_words, reason.replace("`", ""))
    return reason[:1].lower() + reason[1:]


def _bound_in_words(bound: re.Match[str]) -> str:
    return f"{_BOUNDS[bound['bound']]} {float(bound['number']):.15g}"


def service_config(name: str, table: Mapping[str, Any], source: Path) -> ServiceConfig:
    """Build one service from a table alone, as :func:`load_config` does from the file's.

    Args:
        name: as in ``[services.NAME]``.
        table: its settings.
        source: named in errors.

    Raises:
        ConfigError: something in it is wrong; names the key.
    """
    checked = _service_table({name: table}, name, f"{source}: [services.{name}]")
    return _build_service(name, checked, {}, source, "")


def _keys(cls: type[Any]) -> list[str]:
    return [field.name for field in attrs.fields(cls)]


def _build_profiles(document: Mapping[str, Any], source: Path) -> dict[str, dict[str, ServiceConfig]]:
    """Build the services of every profile, in the file's order."""
    services = _table(document, "services", f"{source}: [services]")
    for name in services:
        where = f"{source}: [services.{name}]"
        check_service_name(name, where)
        _build_service(name, _service_table(services, name, where), {}, source, "")
    profiles = _table(document, "profiles", f"{source}: [profiles]")
    return {name: _build_profile(name, services, profiles, source) for name in profiles}


def _build_profile(
    profile: str, services: Mapping[str, Any], profiles: Mapping[str, Any], source: Path
) -> dict[str, ServiceConfig]:
    where = f"{source}: [profiles.{profile}]"
    table = _table(profiles, profile, where)
    _check_keys(table, ["services"], where=where)
    where = f"{source}: [profiles.{profile}.services]"
    overrides = _table(table, "services", where)
    _check_keys(overrides, services, where=where)
    if not overrides:
        raise ConfigError(f"{where}: names no services{nearest('', services)}")
    return {
        name: _build_service(
            name, services[name], _service_table(overrides, name, f"{where[:-1]}.{name}]"), source, profile
        )
        for name in overrides
    }


def _service_table(parent: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = _table(parent, name, where)
    _check_keys(table, [key for key in _keys(ServiceConfig) if key != "name"], where=where)
    _table(table, "options", f"{where} options")
    return table


def _build_service(
    name: str, base: Mapping[str, Any], override: Mapping[str, Any], source: Path, profile: str
) -> ServiceConfig:
    """Build one service from its table and the profile's.

    The profile's values replace the table's; ``options`` are merged key by key, unless the profile names another
    handler: its options are others.
    """
    where = f"{source}: [services.{name}]"
    values = {**base, **override, "name": name}
    if "handler" not in values:
        raise ConfigError(f"{where}: key 'handler' is missing; it names a class as \"module:Class\"")
    same_handler = values["handler"] == base.get("handler")
    values["options"] = {**(base.get("options", {}) if same_handler else {}), **override.get("options", {})}
    profile_where = f"{source}: [profiles.{profile}.services.{name}]"
    places = {key: f"{profile_where if key in override else where} {key}" for key in values}
    return _build(ServiceConfig, _Settings(values, places))


def check_service_name(name: str, where: str) -> None:
    """Refuse a name that cannot stand in URLs.

    Raises:
        ConfigError: ``where`` gives such a name.
    """
    if not _SERVICE_NAME.match(name) or name in _RESERVED_NAMES:
        raise ConfigError(
            f"{where}: a service's name is part of URLs: lower-case letters, digits and '-', not reserved"
        )
