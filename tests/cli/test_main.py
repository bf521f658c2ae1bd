"""The command line itself: help, what it imports, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiservices.cli import Exit
from tests.cli.conftest import ROOT, Cli

COMMANDS = ("serve", "services", "check", "jobs", "pull", "models", "push", "new-service", "run", "runpod")
HEAVY = ("aiohttp", "huggingface_hub", "msgspec", "numpy", "runpod", "structlog", "torch", "transformers")


def imported_by(code: str) -> list[str]:
    """Which of the heavy packages a piece of Python imports, in a process of its own."""
    program = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    return found


def test_no_help_imports_anything_heavy() -> None:
    asked = [["--help"], *([command, "--help"] for command in COMMANDS)]
    code = (
        f"from aiservices.cli import main\nfor words in {asked!r}:\n    try:\n        main(words)\n"
        "    except SystemExit as left:\n        assert not left.code"
    )
    assert imported_by(code) == []


@pytest.mark.parametrize("command", ["services", "check"])
def test_to_look_at_the_demo_takes_no_torch(command: str) -> None:
    found = imported_by(f"from aiservices.cli import main\nmain([{command!r}, '--profile', 'demo'])")
    assert {"torch", "transformers", "runpod"}.isdisjoint(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == Exit.OK
    assert out.startswith(f"usage: aiservices {command}")
    assert "--profile" in out


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "sing",
        "serve --port 70000",
        "serve --port web",
        "serve --profil demo",
        "run",
        "check a=b",
        "run echo --seed=3",
    ],
)
def test_a_wrong_command_line_is_refused(cli: Cli, arguments: str) -> None:
    code, out, err = cli(*arguments.split())
    assert code == Exit.USAGE
    assert not out
    assert "usage: aiservices" in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("chek", "; did you mean 'check'?\n"),
        ("serve --hsot x", "unrecognized arguments: --hsot x; did you mean '--host'?\n"),
        ("serve --profil=demo", "; did you mean '--profile'?\n"),
        ("jobs lst", "; did you mean 'list'?\n"),
        ("serve --zzz", "unrecognized arguments: --zzz\n"),
    ],
)
def test_a_misspelt_word_is_told_the_right_one(cli: Cli, arguments: str, hint: str) -> None:
    code, _, err = cli(*arguments.split())
    assert (code, err.endswith(hint)) == (Exit.USAGE, True), err


@pytest.mark.parametrize("command", [["serve"], ["services"], ["check"], ["pull"], ["run", "echo"]], ids=" ".join)
def test_wrong_settings_are_one_line(cli: Cli, command: list[str]) -> None:
    assert cli(*command, "--profile", "dmo") == (
        Exit.USAGE,
        "",
        "aiservices: services.toml: no profile 'dmo' (--profile); did you mean 'demo'?\n",
    )


def test_the_settings_file_can_be_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "services.toml").rename(tmp_path / "mine.toml")
    assert cli("services")[0] == Exit.USAGE
    assert cli("services", "--config", "mine.toml")[0] == Exit.OK


def test_ctrl_c_is_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aiservices.cli.services.run", interrupted)
    assert cli("services") == (Exit.INTERRUPTED, "", "")


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = [sys.executable, "-m", "aiservices", "services"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.FAILED, "")
