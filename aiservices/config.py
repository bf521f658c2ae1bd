"""Settings: ``services.toml``, one profile of it, and what the environment overrides.

The file has the tables ``[server]``, ``[fetch]``, ``[webhook]``, ``[s3]``, ``[services.NAME]`` and
``[profiles.NAME.services]``. A profile names the services that run and may override any of their settings. Every
setting has one name with its unit, here; anything unknown is an error that suggests the nearest right word.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from aiservices.errors import ConfigError, nearest

DEFAULT_PATH = Path("services.toml")
ENV_PREFIX = "AISERVICES_"

T = TypeVar("T")

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


@attrs.frozen(kw_only=True)
class ServerConfig:
    """``[server]``: the process and its HTTP side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8001
    profile: str = "demo"
    api_keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    grace_s: Seconds = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    max_run_body_bytes: Positive = 10 * 1024 * 1024
    max_runsync_body_bytes: Positive = 20 * 1024 * 1024
    model_dir: Path = Path("models")
    pool_threads: Positive = 2


@attrs.frozen(kw_only=True)
class FetchConfig:
    """``[fetch]``: bounds of the guarded download of URLs that callers give."""

    max_bytes: Positive = 25 * 1024 * 1024
    timeout_s: PositiveSeconds = 20.0
    connect_timeout_s: PositiveSeconds = 5.0
    max_redirects: Count = 3
    max_concurrency: Positive = 32
    allow_hosts: tuple[str, ...] = ()
    user_agent: str = "aiservices"


@attrs.frozen(kw_only=True)
class WebhookConfig:
    """``[webhook]``: the POST of the status object when a job ends."""

    timeout_s: PositiveSeconds = 10.0
    attempts: Positive = 3
    retry_wait_s: Seconds = 10.0
    max_pending: Positive = 1000
    secret: str = attrs.field(default="", repr=False)


@attrs.frozen(kw_only=True)
class S3Config:
    """``[s3]``: where models (and large outputs) lie. Empty values leave the choice to the AWS defaults."""

    endpoint_url: str = ""
    region: str = ""
    access_key_id: str = attrs.field(default="", repr=False)
    secret_access_key: str = attrs.field(default="", repr=False)


@attrs.frozen(kw_only=True)
class ServiceConfig:
    """``[services.NAME]``: one service, with the profile's overrides applied."""

    name: str
    handler: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    model: str = ""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    load: Literal["start", "first_use"] = "start"
    max_batch_size: Positive = 8
    batch_wait_s: Seconds = 0.01
    prefetch: Positive = 16
    queue_size: Positive = 1000
    queue_bytes: Positive = 256 * 1024 * 1024
    timeout_s: Annotated[float, Meta(ge=1, le=604_800)] = 600.0
    ttl_s: Annotated[float, Meta(ge=1, le=604_800)] = 86_400.0
    memory_gib: Seconds = 0.0
    keep_results_s: Seconds = 1800.0
    keep_results: Count = 10_000
    keep_results_bytes: Count = 512 * 1024 * 1024
    stream_buffer_bytes: Positive = 1024 * 1024
    options: dict[str, Any] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class Config:
    """All settings of one process.

    Attributes:
        profile: name of the running profile.
        services: the profile's services by name, in the file's order.
        profiles: names of every profile in the file.
    """

    server: ServerConfig = ServerConfig()
    fetch: FetchConfig = FetchConfig()
    webhook: WebhookConfig = WebhookConfig()
    s3: S3Config = S3Config()
    profile: str = ""
    services: Mapping[str, ServiceConfig] = attrs.Factory(dict)
    profiles: tuple[str, ...] = ()


ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "AISERVICES_PROFILE": ("server", "profile"),
    "AISERVICES_HOST": ("server", "host"),
    "AISERVICES_PORT": ("server", "port"),
    "AISERVICES_API_KEYS": ("server", "api_keys"),
    "AISERVICES_GRACE_S": ("server", "grace_s"),
    "AISERVICES_LOG_LEVEL": ("server", "log_level"),
    "AISERVICES_LOG_FORMAT": ("server", "log_format"),
    "AISERVICES_MODEL_DIR": ("server", "model_dir"),
    "AISERVICES_FETCH_ALLOW_HOSTS": ("fetch", "allow_hosts"),
    "AISERVICES_WEBHOOK_SECRET": ("webhook", "secret"),
    "AISERVICES_S3_ENDPOINT_URL": ("s3", "endpoint_url"),
    "AISERVICES_S3_REGION": ("s3", "region"),
    "AISERVICES_S3_ACCESS_KEY_ID": ("s3", "access_key_id"),
    "AISERVICES_S3_SECRET_ACCESS_KEY": ("s3", "secret_access_key"),
}
"""Environment variable -> (table, key) that it overrides; a value of several words is separated by commas."""

CONFIG_VARIABLE = "AISERVICES_CONFIG"
"""Environment variable that names the settings file."""

_TABLES: Mapping[str, type[Any]] = {
    "server": ServerConfig,
    "fetch": FetchConfig,
    "webhook": WebhookConfig,
    "s3": S3Config,
}
_LISTS = {("server", "api_keys"), ("fetch", "allow_hosts")}
_SERVICE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
_RESERVED_NAMES = frozenset({"api", "v1", "v2", "livez", "readyz", "ping", "metrics", "static"})


def load_config(path: Path | None, environ: Mapping[str, str], profile: str | None = None) -> Config:
    """Read the settings file, choose a profile and apply the environment.

    Args:
        path: the file; None takes ``AISERVICES_CONFIG`` or ``services.toml`` in the working directory.
        environ: the environment, passed in so that tests need not touch the real one.
        profile: overrides the file's and the environment's choice.

    Raises:
        ConfigError: one line that names file, table and key.
    """
    source = path or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_PATH)
    document = _read(source)
    _check_keys(document, [*_TABLES, "services", "profiles"], where=f"{source}")
    tables = {name: dict(_table(document, name, source)) for name in _TABLES}
    origins = _apply_environment(tables, environ)
    built = {name: _build(cls, tables[name], f"{source}: [{name}]", origins) for name, cls in _TABLES.items()}
    profiles = _table(document, "profiles", source)
    chosen = profile or built["server"].profile
    services = _profile_services(document, profiles, chosen, source)
    return Config(**built, profile=chosen, services=services, profiles=tuple(profiles))


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file; name one with --config or {CONFIG_VARIABLE}") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def _table(document: Mapping[str, Any], name: str, source: Path, *, parent: str = "") -> Mapping[str, Any]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: {parent}{name}: expected a table")
    return value


def _check_keys(table: Mapping[str, Any], known: Iterable[str], *, where: str) -> None:
    words = list(known)
    for key in table:
        if key not in words:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, words)}")


def _apply_environment(tables: dict[str, dict[str, Any]], environ: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Put the environment over the file; return which variable set which key, for messages."""
    origins: dict[tuple[str, str], str] = {}
    known = [*ENVIRONMENT, CONFIG_VARIABLE]
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable not in ENVIRONMENT:
            raise ConfigError(f"environment: unknown variable {variable}{nearest(variable, known)}")
        if value == "":
            continue  # "VARIABLE=" in an env file means "not set"
        table, key = ENVIRONMENT[variable]
        split = (table, key) in _LISTS
        tables[table][key] = [part.strip() for part in value.split(",") if part.strip()] if split else value
        origins[table, key] = variable
    return origins


def _build(cls: type[T], table: Mapping[str, Any], where: str, origins: Mapping[tuple[str, str], str]) -> T:
    known = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]  # each of _TABLES is an attrs class
    _check_keys(table, known, where=where)
    name = where.rpartition("[")[2].rstrip("]")
    types = get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in table.items():
        # The environment holds only strings, so its values alone are read leniently ("8001" is a port).
        origin = origins.get((name, key))
        try:
            values[key] = msgspec.convert(value, types[key], strict=origin is None)
        except msgspec.ValidationError as error:
            place = f"environment: {origin}" if origin else f"{where} {key}"
            raise ConfigError(f"{place}: {_explain(error)}") from None
    return cls(**values)


def _explain(error: msgspec.ValidationError) -> str:
    reason = str(error).replace("`", "")
    return reason[:1].lower() + reason[1:]


def _profile_services(
    document: Mapping[str, Any], profiles: Mapping[str, Any], chosen: str, source: Path
) -> dict[str, ServiceConfig]:
    services = _table(document, "services", source)
    for name in services:
        _check_service_name(name, f"{source}: [services.{name}]")
        _build_service(name, services[name], {}, source, chosen="")
    if chosen not in profiles:
        raise ConfigError(f"{source}: no profile {chosen!r}{nearest(chosen, profiles)}")
    for name, table in profiles.items():
        where = f"{source}: [profiles.{name}]"
        _check_keys(_table(profiles, name, source, parent="profiles."), ["services"], where=where)
        _check_keys(_table(table, "services", source, parent=f"profiles.{name}."), services, where=where)
    overrides = profiles[chosen].get("services", {})
    if not overrides:
        raise ConfigError(f"{source}: [profiles.{chosen}] names no services")
    return {name: _build_service(name, services[name], overrides[name], source, chosen=chosen) for name in overrides}


def _build_service(name: str, base: Any, override: Any, source: Path, *, chosen: str) -> ServiceConfig:
    """Build one service from its table and the profile's; ``options`` are merged key by key, the rest replaced."""
    where = f"{source}: [services.{name}]"
    for table, place in ((base, where), (override, f"{source}: [profiles.{chosen}.services.{name}]")):
        if not isinstance(table, dict):
            raise ConfigError(f"{place}: expected a table")
        known = [field.name for field in attrs.fields(ServiceConfig) if field.name != "name"]
        _check_keys(table, known, where=place)
    merged = {**base, **override, "options": {**base.get("options", {}), **override.get("options", {})}}
    if "handler" not in merged:
        raise ConfigError(f"{where}: key 'handler' is missing; it names a class as \"module:Class\"")
    return _build(ServiceConfig, {**merged, "name": name}, where, {})


def _check_service_name(name: str, where: str) -> None:
    if not _SERVICE_NAME.match(name) or name in _RESERVED_NAMES:
        raise ConfigError(
            f"{where}: a service's name is part of URLs: lower-case letters, digits and '-', not reserved"
        )
