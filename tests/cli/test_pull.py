"""``pull`` fetches models and the folders that options name."""

from __future__ import annotations

from pathlib import Path

from aiservices.cli import Exit
from tests.cli.conftest import SETTINGS, Cli


def test_pull_says_where_each_model_lies(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("pull", "--profile", "all")
    assert code == Exit.OK
    assert out.splitlines()[:2] == ["echo: needs no model", "upper: ."]


def test_pull_fetches_the_folders_that_options_name(cli: Cli) -> None:
    lines = "shelved: needs no model\nshelved options.shelf: .\n"
    assert cli("pull", "--profile", "shelved") == (Exit.OK, lines, "")
    assert cli("pull", "--profile", "shelved", "shelved") == (Exit.OK, lines, "")
    Path("services.toml").write_text(SETTINGS.replace('shelf = "."', 'shelf = "nowhere"'), encoding="utf-8")
    code, _, err = cli("pull", "shelved")
    assert code == Exit.FAILED
    assert err.startswith("aiservices: options.shelf: 'nowhere': no such folder (/")
