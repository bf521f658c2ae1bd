"""The README's examples, run as they are written, and its settings compared with those there are."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile  # type: ignore[import-untyped]  # ships no types
from standardwebhooks import WebhookVerificationError

from aiservices.environment import CONFIG_VARIABLE
from aiservices.webhooks import SigningKeys, message_id

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8001"


def block(mark: str) -> str:
    """The fenced block after ``<!-- mark -->``."""
    found = blocks(re.escape(mark))
    assert len(found) == 1, f"the README has {len(found)} blocks marked {mark!r}"
    return found[0]


def blocks(pattern: str) -> list[str]:
    """Every fenced block after ``<!-- mark -->``, for marks that match the pattern."""
    return re.findall(rf"<!-- {pattern} -->\n```\w+\n(.*?)```", README, re.DOTALL)


def shell(command: str, folder: Path, **variables: str) -> str:
    """Run a block of the README as a reader would, in a folder, with our interpreter for the README's."""
    command = command.replace(".venv/bin/python", sys.executable)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The default profile, served by a process of its own on a free port."""
    pytest.importorskip("transformers", reason="needs the demo extra: scripts/install demo")
    with served([]) as address:
        yield address


@contextmanager
def served(arguments: Sequence[str]) -> Iterator[str]:
    """A process that serves as ``scripts/serve`` does with these arguments, but on a free port; gives its address."""
    profile = [f"--profile={word}" if place == 0 else word for place, word in enumerate(arguments)]
    command = [sys.executable, "-m", "aiservices", "serve", *profile, "--port", "0"]
    environment = {**os.environ, "AISERVICES_JOURNAL_PATH": "off"}  # it would lie in the working tree
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=null, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def asked(server: str, mark: str, folder: Path = ROOT) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(shell(block(mark).replace(ADDRESS, server), folder))
    assert answer["status"] == "COMPLETED", answer
    return answer


def shown(mark: str) -> Any:
    return json.loads(block(mark))["output"]


@pytest.mark.demo
@pytest.mark.timeout(180)
def test_the_picture_is_described_as_the_readme_shows(server: str) -> None:
    assert asked(server, "run: describe")["output"] == shown("shows: describe")


@pytest.mark.demo
@pytest.mark.timeout(180)
def test_the_listing_is_what_the_readme_shows(server: str) -> None:
    output = asked(server, "run: listing")["output"]
    assert output == shown("shows: listing")
    assert shown("shows: describe")["description"] in block("run: listing")


@pytest.mark.demo
@pytest.mark.timeout(180)
def test_the_speech_is_a_playable_file_of_the_length_that_the_readme_tells(server: str, tmp_path: Path) -> None:
    shell(block("run: speech").replace(ADDRESS, server), tmp_path)
    told = re.search(r"`speech.wav` is ([\d.]+) seconds", README)
    assert told is not None
    info = soundfile.info(tmp_path / "speech.wav")
    assert info.duration == pytest.approx(float(told[1]), abs=0.1)


# --- a service of your own ---


@pytest.fixture(scope="module")
def examples() -> Iterator[str]:
    """What the README's ``scripts/serve`` for the examples starts, on a free port."""
    with served(block("serve: examples").split()[1:]) as address:
        yield address


def test_the_examples_are_the_files() -> None:
    for name in ("examples/count_words.py", "examples/services.toml"):
        assert "\n".join(blocks(rf"(?:file|part of): {name}")) == (ROOT / name).read_text(encoding="utf-8")
    source = (ROOT / "examples/tell_story.py").read_text(encoding="utf-8")
    methods = block("excerpt of: examples/tell_story.py").replace(
        "\n\n\n", "\n\n"
    )  # ruff's blank lines outside a class
    assert textwrap.indent(methods, "    ") in source


def test_a_service_of_ones_own_runs_as_written() -> None:
    assert json.loads(shell(block("run: own"), ROOT)) == json.loads(block("shows: own"))


def test_a_service_of_ones_own_runs_from_anywhere(tmp_path: Path) -> None:
    for name in ("count_words.py", "services.toml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    command = block("run: own").replace("examples/services.toml", str(tmp_path / "services.toml"))
    assert json.loads(shell(command, ROOT)) == json.loads(block("shows: own"))


def test_what_the_examples_need_is_installed_without_an_extra() -> None:
    _, profile, *options = block("serve: examples").split()
    command = [str(ROOT / "scripts" / "install"), profile, "--dry-run"]
    environment = {**os.environ, CONFIG_VARIABLE: options[1]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "fast\n")


def test_the_story_is_streamed_as_the_readme_shows(examples: str) -> None:
    heard = events(shell(block("run: story").replace(ADDRESS, examples), ROOT))
    told = events(block("shows: story"))
    assert heard[:-1] == told[:-1]
    for key in ("status", "output"):
        assert heard[-1][1][key] == told[-1][1][key]


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events: names and data."""
    return [(name, json.loads(data)) for name, data in re.findall(r"^event: (\w+)\ndata: (.*)$", text, re.MULTILINE)]


# --- the tables of settings ---


def settings_table(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "settings_table.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_tables_are_those_of_the_settings() -> None:
    done = settings_table(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"`{CONFIG_VARIABLE}`" in README


def test_tables_that_differ_from_the_settings_are_refused_and_rewritten(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "settings_table.py", tmp_path / "scripts")
    readme = tmp_path / "README.md"
    outdated = README.replace("| `8001` |", "| `8002` |")
    readme.write_text(outdated, encoding="utf-8")
    done = settings_table(tmp_path, "--check")
    assert done.returncode == 1
    assert done.stderr == "README.md: the tables of settings are out of date; run scripts/settings-table\n"
    assert readme.read_text(encoding="utf-8") == outdated
    assert settings_table(tmp_path).returncode == 0
    assert readme.read_text(encoding="utf-8") == README


def test_the_example_that_verifies_a_webhook() -> None:
    """In Python, with the specification's library."""
    names: dict[str, Any] = {}
    exec(block("verify a webhook"), names)  # our own README
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    headers = SigningKeys([secret]).headers(message_id("1", 1), int(time.time()), b'{"id":"1"}')
    assert names["receive"](b'{"id":"1"}', headers, secret) == {"id": "1"}
    with pytest.raises(WebhookVerificationError):
        names["receive"](b'{"id":"2"}', headers, secret)
