"""``run``: one job without a server, its fields from the command line and its output to a file."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import attrs
import pytest

from aiservices.cli import Exit
from aiservices.cli.run import progress_line
from aiservices.handler import BatchHandler, Task, output_file
from aiservices.jobs import JobRequest
from tests.cli.conftest import ROOT, Cli, until
from tests.fakes import Gated, TextInput, make_service


@attrs.frozen
class SpeechOutput:
    """Audio and what it is."""

    audio: Annotated[bytes, output_file("The sound.")]
    media_type: str = "audio/wav"


class Speech(BatchHandler[TextInput, SpeechOutput]):
    """Answers with a text as if it were audio."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[SpeechOutput | Exception]:
        return [SpeechOutput(task.item.text.upper().encode() * 50) for task in tasks]


def test_run_prints_the_output_as_json(cli: Cli) -> None:
    code, out, err = cli("run", "echo", "text=hello")
    assert (code, err) == (Exit.OK, "")
    assert json.loads(out) == {"text": "hello", "batch_size": 1}


def test_options_may_stand_between_the_fields(cli: Cli) -> None:
    code, out, _ = cli("run", "echo", "chunks=2", "--profile", "demo", "text=hello")
    assert code == Exit.OK
    assert json.loads(out)["text"] == "hello"


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["echo", "text=no", "fail=true"], Exit.FAILED, "FAILED: no"),
        (["echo", "txt=x"], Exit.USAGE, "$.txt: unknown field; did you mean 'text'?"),
        (["echo", "text=x", "chunks=many"], Exit.USAGE, "$.chunks: expected int, got str"),
        (["echo", "text"], Exit.USAGE, "$.text: expected KEY=VALUE"),
        (["echo", "text=@nowhere.txt"], Exit.USAGE, "$.text: nowhere.txt: No such file or directory"),
        (["eco", "text=x"], Exit.USAGE, "no service named 'eco'; there are: echo, upper, unloadable, speech"),
        (["unloadable", "text=x"], Exit.FAILED, "FAILED: the model could not be loaded: options: no such weights"),
        (["echo", "text=x", "--output", "no/x.json"], Exit.FAILED, "no/x.json: cannot be written: No such file or dir"),
    ],
)  # fmt: skip
def test_run_says_what_went_wrong(cli: Cli, words: list[str], code: int, complaint: str) -> None:
    found, out, err = cli("run", *words, "--profile", "all")
    assert (found, out) == (code, "")
    assert err.startswith(f"aiservices: {complaint}")
    assert err.count("\n") == 1


def test_audio_goes_into_the_file_and_its_path_into_the_output(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("run", "speech", "text=hi", "--profile", "all", "--output", "hi.wav")
    assert code == Exit.OK
    assert json.loads(out) == {"audio": "hi.wav", "media_type": "audio/wav"}
    assert (tmp_path / "hi.wav").read_bytes() == b"HI" * 50


def test_an_output_without_audio_goes_into_the_file_as_it_is(cli: Cli, tmp_path: Path) -> None:
    _, out, _ = cli("run", "echo", "text=hi", "--output", "hi.json")
    assert json.loads(out) == {"written": "hi.json"}
    assert json.loads((tmp_path / "hi.json").read_text()) == {"text": "hi", "batch_size": 1}


class Terminal(io.StringIO):
    """Says that someone is looking."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_progress_and_is_spared_the_base64(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli("run", "speech", "text=hi", "--profile", "all")[0] == Exit.OK
    assert err.getvalue().endswith("\r\x1b[K")
    assert json.loads(out.getvalue())["audio"].endswith("… (136 characters; --output FILE writes them)")


async def test_the_line_on_the_terminal_says_how_far_the_job_is() -> None:
    service = make_service(gated := Gated())
    job = service.submit(JobRequest(input={"text": "hi"}))
    assert progress_line(service, job) == "the model is waiting to be loaded"
    assert await asyncio.to_thread(gated.entered.wait, 10)
    assert progress_line(service, job) == "running for 0 s"
    job.set_progress(job.attempt, 0.5)
    assert progress_line(service, job) == "[###############...............]  50%"
    gated.gate.set()
    await job.wait_end(10)
    await service.close()


def test_ctrl_c_ends_the_job_and_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aiservices", "run", "--profile", "echo", "-v", "echo", "text=x", "seconds=60"]
    # Where the tests run in the background SIGINT may be ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        until(process.stderr, "service.ready")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == Exit.INTERRUPTED
    assert '"status":"CANCELLED"' in rest
    assert "Traceback" not in rest
