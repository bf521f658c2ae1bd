from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aiservices.cli import Exit, main
from aiservices.cli.progress import ProgressLine, duration
from aiservices.storage import Progress
from tests.storage.conftest import Bucket, read

SETTINGS = """
[s3]
endpoint_url = "{url}"
region = "us-east-1"
access_key_id = "key"
secret_access_key = "secret"

[services.echo]
handler = "aiservices.handlers.echo:Echo"
model = "s3://models/org/name/"

[services.other]
handler = "aiservices.handlers.echo:Echo"

[services.shelved]
handler = "tests.fakes:Shelved"
options = {{ shelf = "s3://models/shelf/" }}

[profiles.demo.services.echo]

[profiles.shelved.services.shelved]

[profiles.others.services.other]
"""
URI = "s3://models/org/name/"
MODEL = {"config.json": b"{}", "sub/weights.safetensors": b"w" * 100_000}

Cli = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.s3


@pytest.fixture
def cli(tmp_path: Path, moto_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in an empty folder; returns its exit code, output and complaints."""
    monkeypatch.chdir(tmp_path)
    for module in ("pull", "push"):
        monkeypatch.setattr(f"aiservices.cli.{module}.configure_logging", lambda *arguments: None)
    Path("services.toml").write_text(SETTINGS.format(url=moto_url), encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_what_is_pushed_can_be_pulled_listed_and_removed(cli: Cli, bucket: Bucket, tmp_path: Path) -> None:
    for name, data in {**MODEL, ".hidden": b"stays here"}.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    code, out, err = cli("push", "mine", "s3://models/org/name")
    assert (code, out) == (Exit.OK, f"{URI}\n")
    assert err.splitlines()[-1].startswith("s3://models/org/name: 100%, 2/2 files, 97.7 KiB of 97.7 KiB")
    assert set(bucket.files()) == {*MODEL, "SHA256SUMS"}

    code, out, err = cli("pull", URI)
    folder = Path(out.removeprefix(f"{URI}: ").strip())
    assert code == Exit.OK
    assert {name: data for name, data in read(folder).items() if name != "SHA256SUMS"} == MODEL
    assert err.splitlines()[0].startswith(f"{URI}: 0%, 0/3 files, 0 B of 97.8 KiB")
    assert "100%, 3/3 files" in err

    code, out, _ = cli("models")
    assert [line.split()[0] for line in out.splitlines()] == ["MODEL", URI, "97.8"]
    row = out.splitlines()[1].split()
    assert (row[1:3], row[5:7]) == (["97.8", "KiB"], ["sha256", "no"])
    shown = json.loads(cli("models", "--json")[1])["models"]
    assert [(model["name"], model["verified"], model["in_use"]) for model in shown] == [(URI, "sha256", False)]
    assert datetime.fromisoformat(shown[0]["last_used"]).tzinfo is UTC
    assert cli("models", "rm", URI) == (Exit.OK, f"{URI}: 97.8 KiB removed\n", "")
    assert cli("models", "--json") == (Exit.OK, '{\n  "models": []\n}\n', "")
    assert cli("models") == (Exit.OK, "no models were downloaded\n", "")


@pytest.mark.parametrize("what", [[], ["demo"], ["echo"], [URI]])
def test_pull_takes_a_profile_a_service_or_a_uri(cli: Cli, bucket: Bucket, what: list[str]) -> None:
    bucket.put(MODEL)
    code, out, _ = cli("pull", *what)
    name = URI if what == [URI] else "echo"
    assert code == Exit.OK
    assert out.startswith(f"{name}: models/s3/models-org-name-")


def test_pull_and_check_know_the_folders_that_options_name(cli: Cli, bucket: Bucket) -> None:
    bucket.put({"anna.wav": b"la" * 50_000}, prefix="shelf/")
    found = "  ok    options   shelf: s3://models/shelf/"
    assert f"{found} to be downloaded: 1 files, 97.7 KiB at most\n" in cli("check", "--profile", "shelved")[1]

    code, out, err = cli("pull", "shelved")
    assert code == Exit.OK
    model, shelf = out.splitlines()
    folder = shelf.removeprefix("shelved options.shelf: ")
    assert model == "shelved: needs no model"
    assert set(read(Path(folder))) == {"anna.wav"}
    assert "shelved options.shelf: 100%, 1/1 files, 97.7 KiB of 97.7 KiB" in err

    assert f"{found} in {folder}\n" in cli("check", "--profile", "shelved")[1]
    bucket.delete("anna.wav", prefix="shelf/")
    code, out, _ = cli("check", "--profile", "shelved")
    assert "  WRONG options   options.shelf: 's3://models/shelf/': there is nothing below this prefix\n" in out
    assert code == Exit.FAILED


def test_pull_takes_another_profile_than_the_running_one(cli: Cli) -> None:
    assert cli("pull", "others") == (Exit.OK, "other: needs no model\n", "")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["pull", "ech"], Exit.USAGE, "no service, profile or URI 'ech'; did you mean 'echo'?"),
        (["pull", "s3://nowhere/x/"], Exit.FAILED, "model 's3://nowhere/x/': there is no such bucket"),
        (["models", "rm"], Exit.USAGE, "models rm: which one? 'aiservices models' lists them"),
        (["models", "rm", "x"], Exit.FAILED, "no model 'x' is here"),
        (["push", "nowhere", URI], Exit.FAILED, f"upload to '{URI}': no such folder: nowhere"),
        (["push", ".", "hf://a/b"], Exit.FAILED, "'hf://a/b': only a bucket takes uploads; expected s3://bucket/prefi"),
        (["push", ".", f"{URI}?files=x"], Exit.FAILED, f"'{URI}?files=x': an upload takes the whole folder; leave ?fi"),
    ],
)
def test_what_cannot_be_is_one_line(cli: Cli, words: list[str], code: int, complaint: str) -> None:
    found, out, err = cli(*words)
    assert (found, out) == (code, "")
    assert err.startswith(f"aiservices: {complaint}")
    assert err.count("\n") == 1


# --- the line ---


class Terminal(io.StringIO):
    """Says that someone is looking."""

    def isatty(self) -> bool:
        return True


MIB = 2**20


def test_a_terminal_gets_a_bar_with_speed_and_time_left() -> None:
    out, now = Terminal(), iter([0.0, 0.0, 10.0])
    line = ProgressLine("model", out, lambda: next(now))
    line(Progress(0, 3, 100 * MIB, 1100 * MIB))
    line(Progress(1, 3, 350 * MIB, 1100 * MIB))
    line.close()
    first, second, last = out.getvalue().split("\r\x1b[K")[1:]
    assert first == "model: [##..................]   9% 0/3 files, 100.0 MiB of 1.1 GiB"
    assert second == "model: [######..............]  32% 1/3 files, 350.0 MiB of 1.1 GiB, 25.0 MiB/s, 30 s left"
    assert last == ""


def test_elsewhere_plain_lines_come_at_every_tenth() -> None:
    out = io.StringIO()
    line = ProgressLine("model", out, lambda: 0.0)
    for percent in range(101):
        line(Progress(0, 1, percent * MIB, 100 * MIB))
    line.close()
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["0%,", *(f"{ten}0%," for ten in range(1, 11))]


def test_a_line_says_that_another_process_is_at_it() -> None:
    out = io.StringIO()
    ProgressLine("model", out)(Progress(0, 1, 5, 10, elsewhere=True))
    assert out.getvalue() == "model: 50%, 0/1 files, 5 B of 10 B, by another process\n"


def test_a_download_of_nothing_is_done() -> None:
    out = io.StringIO()
    ProgressLine("model", out)(Progress(1, 1, 0, 0))
    assert out.getvalue() == "model: 100%, 1/1 files, 0 B of 0 B\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")])
def test_a_time_is_written_as_people_read_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
