"""``new-service``: what it writes serves, passes its own test, and takes nothing's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiservices.cli import Exit
from tests.cli.conftest import ROOT, SETTINGS, Cli


def in_folder(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python there, with the package in reach."""
    environ = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_new_service_answers_and_passes_its_test(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("new-service", "translate-text")
    assert code == Exit.OK
    assert out.startswith("written: translate_text.py, test_translate_text.py, and its tables in services.toml\n")
    command = out.splitlines()[1].split()[1:]
    done = in_folder(tmp_path, *command)
    assert json.loads(done.stdout) == {"text": "HELLO!"}, done.stderr
    tested = in_folder(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", ".")
    assert "3 passed" in tested.stdout, tested.stdout


def test_in_the_source_it_goes_where_services_are(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aiservices" / "handlers").mkdir(parents=True)
    assert cli("new-service", "tag")[0] == Exit.OK
    assert (tmp_path / "aiservices" / "handlers" / "tag.py").is_file()
    test = (tmp_path / "tests" / "handlers" / "test_tag.py").read_text(encoding="utf-8")
    assert "from aiservices.handlers.tag import Tag\n" in test
    assert 'handler = "aiservices.handlers.tag:Tag"' in Path("services.toml").read_text(encoding="utf-8")


def test_without_a_settings_file_it_begins_one(cli: Cli) -> None:
    Path("services.toml").unlink()
    assert cli("new-service", "tag")[0] == Exit.OK
    code, out, _ = cli("services", "--profile", "tag", "--json")
    assert (code, "tag" in out) == (Exit.OK, True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("echo", "has a service or a profile 'echo' already"),
        ("demo", "has a service or a profile 'demo' already"),
        ("Tag", "a service's name is part of URLs"),
        ("3d-model", "'3d_model' cannot name a Python module"),
        ("class", "'class' cannot name a Python module"),
        ("../x", "a service's name is part of URLs"),
        ("there", "there.py is there already"),
    ],
)
def test_nothing_is_written_over(cli: Cli, name: str, reason: str) -> None:
    Path("there.py").touch()
    before = sorted(Path().iterdir())
    code, out, err = cli("new-service", name)
    assert (code, out) == (Exit.USAGE, "")
    assert reason in err
    assert sorted(Path().iterdir()) == before
    assert Path("services.toml").read_text(encoding="utf-8") == SETTINGS


def test_in_the_source_it_passes_the_linters(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aiservices" / "handlers").mkdir(parents=True)
    shutil.copy(ROOT / "ruff.toml", tmp_path)
    assert cli("new-service", "translate-text")[0] == Exit.OK
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("needs ruff: the extra dev")
    ours = 'lint.isort.known-first-party=["aiservices"]'  # what it sees by itself in the source
    for words in ("check", "format --check"):
        command = [ruff, *words.split(), "--no-cache", "--config", ours, "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
