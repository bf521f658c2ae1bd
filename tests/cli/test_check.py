"""``check`` finds what would go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from aiservices.cli import Exit
from aiservices.cli.packages import packages_of
from tests.cli.conftest import ROOT, SETTINGS, Cli


def test_check_finds_nothing_wrong_with_the_demo(cli: Cli) -> None:
    code, out, _ = cli("check", "--config", str(ROOT / "services.toml"), "--profile", "demo")
    assert "WRONG" not in out
    assert out.endswith("all is well\n")
    assert code == Exit.OK


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ('handler = "tests.nowhere:Echo"', "handler   [services.echo] handler: cannot import 'tests.nowhere'"),
        ('handler = "tests.fakes:Uper"', "handler   [services.echo] handler: module 'tests.fakes' has no 'Uper';"),
        (
            'handler = "aiservices.handlers.echo:Echo"\noptions = { batch_sec = 1 }',
            "handler   [services.echo] options.batch_sec: no such option; did you mean 'batch_s'?",
        ),
        ('model = "nowhere"', "model     model 'nowhere': no such folder"),
        ("memory_gib = 1e6", "memory    all services together: it needs 1e+06 GiB on cpu"),
        ('device = "cuda:99"', "device    cuda:99 cannot be used here"),
    ],
    ids=["no module", "no class", "no option", "no model", "memory", "device"],
)  # fmt: skip
def test_check_names_what_is_wrong(cli: Cli, setting: str, complaint: str) -> None:
    Path("services.toml").write_text(f"{SETTINGS}\n[profiles.wrong.services.echo]\n{setting}\n", encoding="utf-8")
    code, out, _ = cli("check", "--profile", "wrong")
    assert f"  WRONG {complaint}" in out
    assert out.endswith("1 thing wrong\n")
    assert code == Exit.FAILED


def test_findings_are_one_document_for_programs(cli: Cli) -> None:
    code, out, _ = cli("check", "--profile", "all", "--json")
    assert (code, json.loads(out)["wrong"]) == (Exit.OK, 0)
    Path("services.toml").write_text(
        f'{SETTINGS}\n[profiles.wrong.services.echo]\nmodel = "nowhere"\n', encoding="utf-8"
    )
    code, out, _ = cli("check", "--profile", "wrong", "--json")
    shown = json.loads(out)
    wrong = [finding for finding in shown["findings"] if finding["verdict"] == "WRONG"]
    assert (code, shown["profile"], shown["wrong"]) == (Exit.FAILED, "wrong", 1)
    assert [(finding["about"], finding["topic"]) for finding in wrong] == [("echo", "model")]


def test_check_looks_at_the_folders_that_options_name(cli: Cli) -> None:
    code, out, _ = cli("check", "--profile", "shelved")
    assert "  ok    options   shelf: . in ." in out.splitlines()
    assert code == Exit.OK
    Path("services.toml").write_text(SETTINGS.replace('shelf = "."', 'shelf = "nowhere"'), encoding="utf-8")
    code, out, _ = cli("check", "--profile", "shelved")
    assert "  WRONG options   options.shelf: 'nowhere': no such folder (/" in out
    assert out.endswith("1 thing wrong\n")
    assert code == Exit.FAILED


def test_check_sums_the_memory_of_a_device_up(cli: Cli) -> None:
    text = SETTINGS.replace("[services.echo]", "[services.echo]\nmemory_gib = 6e5").replace("= 1.5", "= 6e5")
    Path("services.toml").write_text(text, encoding="utf-8")
    assert "all services together: it needs 1.2e+06 GiB on cpu" in cli("check", "--profile", "all")[1]


@pytest.mark.parametrize(
    ("server", "finding"),
    [
        ('host = "localhost"', "  ok    access    only from this machine (localhost)"),
        ('host = "::1"', "  ok    access    only from this machine (::1)"),
        (
            'host = "0.0.0.0"',
            "  note  access    whoever reaches 0.0.0.0:8001 may call: no keys are set (AISERVICES_API_KEYS)",
        ),
        ('host = "0.0.0.0"\napi_keys = ["a"]', "  ok    access    1 API keys"),
    ],
)
def test_check_says_who_may_call(cli: Cli, server: str, finding: str) -> None:
    Path("services.toml").write_text(f"[server]\n{server}\n{SETTINGS}", encoding="utf-8")
    code, out, _ = cli("check")
    assert finding in out.splitlines()
    assert code == Exit.OK


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Stands in for what pip knows: versions by name, with one extra "echo"."""
    versions = {"aiservices": "0.1.0", "pytest": metadata.version("pytest")}
    requirements = ['pytest>=9,<10; extra == "echo"', 'fastword[fast]==2.0; extra == "echo"', 'other; extra == "no"']

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    return versions  # type: ignore[return-value]  # a fixture may return what it would yield


def test_check_names_the_package_that_is_missing(cli: Cli, installation: dict[str, str]) -> None:
    code, out, _ = cli("check")
    assert "  WRONG packages  fastword (not installed); scripts/install installs them" in out.splitlines()
    assert code == Exit.FAILED


def test_check_names_the_package_that_is_too_old(cli: Cli, installation: dict[str, str]) -> None:
    installation["fastword"] = "1.9"
    assert "  WRONG packages  fastword 1.9 (needs ==2.0); scripts/install installs them" in cli("check")[1]


def test_a_build_of_the_right_version_will_do(cli: Cli, installation: dict[str, str]) -> None:
    installation["fastword"] = "2.0+cpu"
    code, out, _ = cli("check")
    assert f"  ok    packages  pytest {installation['pytest']}, fastword 2.0+cpu" in out
    assert code == Exit.OK


def test_check_does_not_guess_at_packages_where_nothing_is_installed(cli: Cli, installation: dict[str, str]) -> None:
    del installation["aiservices"]
    assert "  note  packages  not known: aiservices itself is not installed here" in cli("check")[1]


def test_what_is_installed_without_its_requirements_is_checked_too() -> None:
    assert {"chatterbox-tts", "s3tokenizer"} <= {package.name for package in packages_of("chatterbox")}
