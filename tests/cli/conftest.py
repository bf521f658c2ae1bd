"""Commands in an empty folder with a few services, and what their processes print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiservices.cli import main

ROOT = Path(__file__).parent.parent.parent

SETTINGS = """
[services.echo]
handler = "aiservices.handlers.echo:Echo"
device = "cpu"

[services.upper]
handler = "tests.fakes:Upper"
device = "cpu"

[services.unloadable]
handler = "tests.fakes:Unloadable"
device = "cpu"

[services.speech]
handler = "tests.cli.test_run:Speech"
device = "cpu"

[services.shelved]
handler = "tests.fakes:Shelved"
device = "cpu"
options = { shelf = "." }

[profiles.demo.services.echo]

[profiles.shelved.services.shelved]

[profiles.all.services]
echo = {}
upper = { memory_gib = 1.5, max_batch_size = 4, model = "." }
unloadable = {}
speech = {}
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command on SETTINGS in an empty folder; returns its exit code, output and complaints."""
    monkeypatch.chdir(tmp_path)
    for module in ("run", "pull", "push"):
        monkeypatch.setattr(f"aiservices.cli.{module}.configure_logging", lambda *arguments: None)
    Path("services.toml").write_text(SETTINGS, encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def until(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came")
