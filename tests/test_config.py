from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aiservices.config import load_config
from aiservices.environment import CONFIG_VARIABLE, ENVIRONMENT
from aiservices.errors import ConfigError
from aiservices.settings import Config

SMALL = """
[services.echo]
handler = "some.module:Echo"

[profiles.demo.services.echo]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, environ: Mapping[str, str] | None = None, profile: str | None = None) -> Config:
    path = Path("services.toml")
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ or {}, profile)


def refusal(text: str, environ: Mapping[str, str] | None = None, profile: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, environ, profile)
    message = str(caught.value)
    assert "\n" not in message.partition("not valid TOML")[0]
    return message


def test_a_file_without_settings_gets_the_defaults() -> None:
    config = load(SMALL)
    assert config.server.host == "127.0.0.1"
    assert config.server.port == 8001
    assert config.server.model_dir == Path("models")
    assert config.profile == "demo"
    assert list(config.services) == ["echo"]
    assert config.services["echo"].max_batch_size == 8


def test_every_table_is_read() -> None:
    config = load(
        '[server]\nport = 9000\nmodel_dir = "elsewhere"\napi_keys = ["a", "b"]\n[fetch]\ntimeout_s = 3\n'
        '[webhook]\nattempts = 1\n[s3]\nregion = "eu-1"\n[outputs]\nbucket = "b"\n' + SMALL
    )
    assert config.server.port == 9000
    assert config.server.model_dir == Path("elsewhere")
    assert config.server.api_keys == ("a", "b")
    assert config.fetch.timeout_s == 3.0
    assert config.webhook.attempts == 1
    assert config.s3.region == "eu-1"
    assert config.outputs.bucket == "b"


def _is_secret(variable: str) -> bool:
    return ("KEY" in variable or "SECRET" in variable) and not variable.endswith("_FILE")


def test_secrets_stay_out_of_the_repr() -> None:
    environ = {variable: "hush-hush" for variable in ENVIRONMENT if _is_secret(variable)}
    config = load(SMALL, environ)
    assert config.server.api_keys == ("hush-hush",)
    assert config.s3.access_key_id == "hush-hush"
    assert "hush-hush" not in repr(config)


# --- profiles ---

TWO_PROFILES = """
[server]
profile = "small"

[services.first]
handler = "a:First"
device = "cuda"
max_batch_size = 4
options = { dtype = "bfloat16", cpu_threads = 2 }

[services.second]
handler = "a:Second"

[profiles.small.services.first]
device = "cpu"
options = { dtype = "float32" }

[profiles.large.services.second]
[profiles.large.services.first]
"""


def test_a_profile_overrides_settings_and_merges_options() -> None:
    first = load(TWO_PROFILES).services["first"]
    assert (first.device, first.max_batch_size) == ("cpu", 4)
    assert first.options == {"dtype": "float32", "cpu_threads": 2}


def test_another_handler_does_not_inherit_the_options_of_the_one_it_replaces() -> None:
    text = TWO_PROFILES.replace('device = "cpu"', 'handler = "b:Other"')
    assert load(text).services["first"].options == {"dtype": "float32"}


def test_the_services_of_a_profile_keep_the_order_of_the_file() -> None:
    assert list(load(TWO_PROFILES, profile="large").services) == ["second", "first"]


@pytest.mark.parametrize(
    ("environ", "argument", "chosen"),
    [
        ({}, None, "small"),
        ({"AISERVICES_PROFILE": "large"}, None, "large"),
        ({"AISERVICES_PROFILE": "no"}, "large", "large"),
    ],
    ids=["file", "environment", "argument"],
)
def test_the_argument_goes_over_the_environment_and_that_over_the_file(
    environ: dict[str, str], argument: str | None, chosen: str
) -> None:
    config = load(TWO_PROFILES, environ, argument)
    assert config.profile == chosen
    assert config.profiles == ("small", "large")


@pytest.mark.parametrize(
    ("environ", "argument", "asked"),
    [
        ({}, None, "[server] profile"),
        ({"AISERVICES_PROFILE": "smal"}, None, "AISERVICES_PROFILE"),
        ({}, "smal", "--profile"),
    ],
    ids=["file", "environment", "argument"],
)
def test_an_unknown_profile_says_who_asked_for_it(environ: dict[str, str], argument: str | None, asked: str) -> None:
    message = refusal(TWO_PROFILES.replace('profile = "small"', 'profile = "smal"'), environ, argument)
    assert message == f"services.toml: no profile 'smal' ({asked}); did you mean 'small'?"


# --- what is wrong is named: file, table, key, nearest word ---

X = "[services.x]\nhandler = 'a:B'\n"
WRONG: list[tuple[str, str]] = [
    ("[sever]\nport = 1", "unknown key 'sever'; did you mean 'server'?"),
    ("[server]\nprot = 1", "[server]: unknown key 'prot'; did you mean 'port'?"),
    ("[server]\nqqq = 1", "[server]: unknown key 'qqq'; there are: profile, host, port, grace_s,"),
    ("server = 1", "[server]: expected a table"),
    ('[server]\nport = "8001"', "[server] port: expected int, got str"),
    ("[server]\nport = 70000", "[server] port: expected at most 65535"),
    ("[server]\nport = true", "[server] port: expected int, got bool"),
    ("[server]\ngrace_s = inf", "[server] grace_s: expected a finite number"),
    ("[server]\nmodel_dir = 3", "[server] model_dir: expected a path"),
    ('[server]\nmodel_dir = ""', "[server] model_dir: expected a path"),
    ('[server]\napi_keys = "a"', "[server] api_keys: expected array, got str"),
    ('[server]\napi_keys = [""]', "[server] api_keys: expected str of length >= 1"),
    ("[server]\nmax_bodies_bytes = 0", "[server] max_bodies_bytes: expected at least 1"),
    ("[server]\nmax_bodies_bytes = 9", "[server] max_bodies_bytes: expected at least 20971520, what one body may have"),
    ("[server]\nbody_timeout_s = 0", "[server] body_timeout_s: expected more than 0"),
    ('[server]\nlog_level = "inf"', "[server] log_level: unknown value 'inf'; did you mean 'info'?"),
    ("[fetch]\ntimeout_s = 0", "[fetch] timeout_s: expected more than 0"),
    ("[webhook]\nattempts = 0", "[webhook] attempts: expected at least 1"),
    ("[s3]\nregoin = 1", "[s3]: unknown key 'regoin'; did you mean 'region'?"),
    ("[outputs]\nmax_output_bytes = 0", "[outputs] max_output_bytes: expected at least 1"),
    ("[outputs]\nurl_lifetime_s = 604801", "[outputs] url_lifetime_s: expected at most 604800"),
    ("services = 1", "[services]: expected a table"),
    ("[services]\nx = 1", "[services.x]: expected a table"),
    ("[services.x]\ndevice = 'cpu'", "[services.x]: key 'handler' is missing"),
    ("[services.x]\nhandler = 'a.b'", '[services.x] handler: expected a class as "module:Class"'),
    (X + "device = 'gpu'", "[services.x] device: expected 'auto', 'cpu', 'cuda'"),
    (X + "options = 1", "[services.x] options: expected a table"),
    (X + "batch_size = 1", "[services.x]: unknown key 'batch_size'; did you mean 'max_batch_size'?"),
    (X + "name = 'y'", "[services.x]: unknown key 'name'"),
    (X + "load = 'started'", "[services.x] load: unknown value 'started'; did you mean 'start'?"),
    (X + "keep_results_s = 0", "[services.x] keep_results_s: expected at least 1"),
    (X + "prepare_timeout_s = 0", "[services.x] prepare_timeout_s: expected more than 0"),
    (X + "hang_s = 0", "[services.x] hang_s: expected more than 0"),
    (X + "batch_wait_s = -1", "[services.x] batch_wait_s: expected at least 0"),
    (X + "timeout_s = nan", "[services.x] timeout_s: expected at least 1"),
    ("[services.Big_One]\nhandler = 'a:B'", "[services.Big_One]: a service's name is part of URLs"),
    ("[services.metrics]\nhandler = 'a:B'", "[services.metrics]: a service's name is part of URLs"),
    ("profiles = []", "[profiles]: expected a table"),
    ("[profiles]\ndemo = 1", "[profiles.demo]: expected a table"),
    ("[profiles.demo]\nport = 1", "[profiles.demo]: unknown key 'port'; there are: services"),
    ("[profiles.demo]\nservices = 1", "[profiles.demo.services]: expected a table"),
    ("[profiles.demo]", "[profiles.demo.services]: names no services"),
    (X + "[profiles.demo.services.y]", "[profiles.demo.services]: unknown key 'y'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text.replace("\n", " ") for text, _ in WRONG])
def test_a_slip_in_the_file_is_named(text: str, message: str) -> None:
    assert refusal(text).startswith(f"services.toml: {message}")


@pytest.mark.parametrize("profile", ["demo", "other"])
def test_a_slip_in_any_profile_is_named_whichever_runs(profile: str) -> None:
    broken = f"{SMALL}\n[profiles.other.services.echo]\nmax_batch_size = 0\n"
    where = "services.toml: [profiles.other.services.echo] max_batch_size: expected at least 1"
    assert refusal(broken, profile=profile) == where


def test_a_slip_in_a_profiles_key_names_the_profile() -> None:
    message = refusal(SMALL + "devise = 'cpu'\n")
    assert message == "services.toml: [profiles.demo.services.echo]: unknown key 'devise'; did you mean 'device'?"


def test_a_value_that_the_profile_does_not_override_is_blamed_on_the_service() -> None:
    assert refusal(SMALL.replace('Echo"', 'Echo"\nprefetch = 0')).startswith("services.toml: [services.echo] prefetch")


def test_a_profile_can_give_the_handler_that_the_service_lacks() -> None:
    with pytest.raises(ConfigError, match="'handler' is missing"):
        load('[services.x]\n[profiles.demo.services.x]\nhandler = "a:B"\n')


# --- the file itself ---


def test_a_missing_file_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Path("nowhere.toml"), {})
    assert str(caught.value) == "nowhere.toml: no such file; name one with --config or AISERVICES_CONFIG"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})


@pytest.mark.parametrize("content", [b"[server", b"\xff\xfe"], ids=["syntax", "encoding"])
def test_what_is_not_toml_is_said_to_be_so(content: bytes) -> None:
    Path("services.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^services\.toml: not valid TOML: "):
        load_config(None, {})


def test_the_environment_names_the_file_unless_an_argument_does() -> None:
    Path("given.toml").write_text(SMALL.replace("demo", "given"), encoding="utf-8")
    Path("named.toml").write_text(SMALL.replace("demo", "named"), encoding="utf-8")
    environ = {CONFIG_VARIABLE: "named.toml"}
    assert load_config(None, environ, "named").profile == "named"
    assert load_config(Path("given.toml"), environ, "given").profile == "given"


# --- the environment ---

FITTING: dict[str, tuple[str, object]] = {
    "port": ("7", 7),
    "grace_s": ("1.5", 1.5),
    "cache_gib": ("1.5", 1.5),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "model_dir": ("/models", Path("/models")),
    "api_keys": ("one,two", ("one", "two")),
    "allow_hosts": ("one,two", ("one", "two")),
    "secrets": ("one,two", ("one", "two")),
}


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_every_variable_reaches_its_setting(variable: str) -> None:
    table, key = ENVIRONMENT[variable]
    given, expected = FITTING.get(key, ("demo", "demo"))
    assert getattr(getattr(load(SMALL, {variable: given}), table), key) == expected


def test_the_environment_goes_over_the_file() -> None:
    assert load("[server]\nport = 9000\n" + SMALL, {"AISERVICES_PORT": "9001"}).server.port == 9001


def test_an_empty_variable_counts_as_unset() -> None:
    assert load("[server]\nport = 9000\n" + SMALL, {"AISERVICES_PORT": ""}).server.port == 9000


def test_lists_are_separated_by_commas() -> None:
    config = load(SMALL, {"AISERVICES_API_KEYS": "one, two,,", "AISERVICES_FETCH_ALLOW_HOSTS": "a.internal"})
    assert config.server.api_keys == ("one", "two")
    assert config.fetch.allow_hosts == ("a.internal",)


def test_other_peoples_variables_are_left_alone() -> None:
    load(SMALL, {"PATH": "/bin", "AISERVICE": "no underscore"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AISERVICES_PROT", "1", "environment: unknown variable AISERVICES_PROT; did you mean 'AISERVICES_PORT'?"),
        (
            "AISERVICES_API_KEY",
            "one",
            "environment: unknown variable AISERVICES_API_KEY; did you mean 'AISERVICES_API_KEYS'?",
        ),
        ("AISERVICES_PORT", "web", "environment: AISERVICES_PORT: expected int"),
        ("AISERVICES_PORT", "-1", "environment: AISERVICES_PORT: expected at least 0"),
        ("AISERVICES_GRACE_S", "nan", "environment: AISERVICES_GRACE_S: expected"),
        (
            "AISERVICES_LOG_FORMAT",
            "yaml",
            "environment: AISERVICES_LOG_FORMAT: unknown value 'yaml'; there are: auto, json",
        ),
    ],
)
def test_a_slip_in_the_environment_names_the_variable(variable: str, value: str, message: str) -> None:
    assert refusal(SMALL, {variable: value}).startswith(message)


def test_a_wrong_secret_is_not_repeated() -> None:
    assert "hush" not in refusal("[s3]\nsecret_access_key = ['hush']\n" + SMALL)
