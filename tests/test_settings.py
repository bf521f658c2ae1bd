"""What the settings say of themselves, and that the files which come with the project agree with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import pytest

from aiservices.config import load_config
from aiservices.environment import CONFIG_VARIABLE, ENVIRONMENT
from aiservices.settings import (
    MEANING,
    Config,
    FetchConfig,
    JournalConfig,
    OutputsConfig,
    S3Config,
    ServerConfig,
    ServiceConfig,
    WebhookConfig,
)

ROOT = Path(__file__).parent.parent

FIRST_SERVICE = "services.qwen-describe-image"
"""Of the services in the file, the one where all settings of a service are listed."""

TABLES: dict[str, type[Any]] = {
    "server": ServerConfig,
    "fetch": FetchConfig,
    "webhook": WebhookConfig,
    "s3": S3Config,
    "outputs": OutputsConfig,
    "journal": JournalConfig,
    FIRST_SERVICE: ServiceConfig,
}


def shipped(profile: str | None = None) -> Config:
    return load_config(ROOT / "services.toml", {}, profile)


def written(table: str) -> list[str]:
    """The lines ``key = value`` of a table of services.toml, those that are commented out too."""
    text = (ROOT / "services.toml").read_text(encoding="utf-8")
    found = re.search(rf"^(?:# )?\[{re.escape(table)}\].*\n((?:.*\n)*?)(?=(?:# )?\[|# ---|\Z)", text, re.MULTILINE)
    assert found is not None, f"services.toml has no table [{table}]"
    return re.findall(r"^(?:# )?(\w+ = .*)", found[1], re.MULTILINE)


# --- each says what it means ---

SETTINGS = [(cls, field) for cls in TABLES.values() for field in attrs.fields(cls) if field.name != "name"]


@pytest.mark.parametrize(("cls", "field"), SETTINGS, ids=lambda value: getattr(value, "name", ""))
def test_a_setting_has_a_meaning_that_fits_a_row_of_a_table(cls: type[Any], field: attrs.Attribute[Any]) -> None:
    meaning = field.metadata[MEANING]
    assert 0 < len(meaning) <= 110
    assert not meaning.endswith(".")
    assert not set(meaning) & set("|\n")
    kind = get_type_hints(cls)[field.name]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    assert [choice for choice in choices if f"`{choice}`" not in meaning] == []


def test_each_variable_of_the_environment_overrides_another_setting() -> None:
    assert len(set(ENVIRONMENT.values())) == len(ENVIRONMENT)
    for table, key in ENVIRONMENT.values():
        assert key in attrs.fields_dict(TABLES[table])


# --- the settings file that comes with the project ---


@pytest.mark.parametrize("table", TABLES)
def test_the_file_names_every_setting_once_in_the_same_order(table: str) -> None:
    """So that whoever looks for a setting finds it there, with its default."""
    names = [field.name for field in attrs.fields(TABLES[table]) if field.name not in ("name", "options")]
    assert [line.partition(" = ")[0] for line in written(table)] == names


def test_the_values_in_the_file_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "services.toml"
    tables = [f"[{table}]\n" + "\n".join(written(table)) for table in TABLES]
    path.write_text("\n".join([*tables, f"[profiles.demo.{FIRST_SERVICE}]"]), encoding="utf-8")
    config = load_config(path, {})
    (service,) = config.services.values()
    assert service == ServiceConfig(name=service.name, handler=service.handler, model=service.model)
    assert attrs.evolve(config, services={}, profiles=()) == Config(profile="demo")


def test_the_default_profile_runs_all_three_services_without_a_gpu_or_a_download() -> None:
    services = shipped().services.values()
    assert len(services) == 3
    assert {service.device for service in services} == {"cpu"}
    assert all(service.model.startswith("package://") or not service.model for service in services)


def test_each_model_has_a_profile_of_its_own() -> None:
    for name in shipped("full").services:
        alone = shipped(name).services
        assert list(alone) == [name]
        assert alone[name].model.startswith("hf://")


def test_the_example_environment_lists_every_variable() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^#? ?(AISERVICES_\w+)=", text, re.MULTILINE)) == {*ENVIRONMENT, CONFIG_VARIABLE}
