"""The environment's share in the settings: which variable overrides which key of which table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiservices.errors import ConfigError, nearest

ENV_PREFIX = "AISERVICES_"

ENVIRONMENT: Mapping[str, tuple[str, str]] = {
    "AISERVICES_PROFILE": ("server", "profile"),
    "AISERVICES_HOST": ("server", "host"),
    "AISERVICES_PORT": ("server", "port"),
    "AISERVICES_API_KEYS": ("server", "api_keys"),
    "AISERVICES_KEYS_FILE": ("server", "keys_file"),
    "AISERVICES_GRACE_S": ("server", "grace_s"),
    "AISERVICES_LOG_LEVEL": ("server", "log_level"),
    "AISERVICES_LOG_FORMAT": ("server", "log_format"),
    "AISERVICES_MODEL_DIR": ("server", "model_dir"),
    "AISERVICES_CACHE_GIB": ("server", "cache_gib"),
    "AISERVICES_FETCH_ALLOW_HOSTS": ("fetch", "allow_hosts"),
    "AISERVICES_WEBHOOK_SECRETS": ("webhook", "secrets"),
    "AISERVICES_WEBHOOK_SECRET": ("webhook", "secret"),
    "AISERVICES_S3_ENDPOINT_URL": ("s3", "endpoint_url"),
    "AISERVICES_S3_REGION": ("s3", "region"),
    "AISERVICES_S3_ACCESS_KEY_ID": ("s3", "access_key_id"),
    "AISERVICES_S3_SECRET_ACCESS_KEY": ("s3", "secret_access_key"),
    "AISERVICES_S3_SESSION_TOKEN": ("s3", "session_token"),
    "AISERVICES_OUTPUTS_BUCKET": ("outputs", "bucket"),
    "AISERVICES_OUTPUTS_ACCESS_KEY_ID": ("outputs", "access_key_id"),
    "AISERVICES_OUTPUTS_SECRET_ACCESS_KEY": ("outputs", "secret_access_key"),
    "AISERVICES_JOURNAL_PATH": ("journal", "path"),
    "AISERVICES_JOURNAL_KEY": ("journal", "key"),
}
"""Environment variable -> (table, key) that it overrides; a value of several words is separated by commas."""

CONFIG_VARIABLE = "AISERVICES_CONFIG"
"""Environment variable that names the settings file."""

KEY_VARIABLE = "AISERVICES_CLIENT_KEY"
"""Environment variable with the key that the command line calls a server with.

No setting, and not named like ``AISERVICES_API_KEYS``: whoever misspelt that would serve without keys.
"""

_LISTS = {("server", "api_keys"), ("webhook", "secrets"), ("fetch", "allow_hosts")}


def read_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], tuple[str, Any]]:
    """Return what the environment sets: (table, key) -> (variable, value).

    Raises:
        ConfigError: a variable with our prefix that nobody reads.
    """
    found: dict[tuple[str, str], tuple[str, Any]] = {}
    no_settings = (CONFIG_VARIABLE, KEY_VARIABLE)
    known = [*ENVIRONMENT, *no_settings]
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in no_settings:
            continue
        if variable not in ENVIRONMENT:
            raise ConfigError(f"environment: unknown variable {variable}{nearest(variable, known)}")
        if value == "":
            continue  # "VARIABLE=" in an env file means "not set"
        place = ENVIRONMENT[variable]
        words = [part.strip() for part in value.split(",") if part.strip()]
        found[place] = (variable, words if place in _LISTS else value)
    return found
