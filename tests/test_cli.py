from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest

from aiservices.cli import Exit, main
from aiservices.cli.fields import read_fields
from aiservices.cli.packages import packages_of
from aiservices.cli.run import progress_line
from aiservices.cli.serve import bind, serve
from aiservices.errors import InvalidInput, ModelBroken, ServiceError
from aiservices.handler import Task
from aiservices.settings import Config, ServerConfig, ServiceConfig
from tests.fakes import TextInput, TextOutput, Upper, make_service

ROOT = Path(__file__).parent.parent
COMMANDS = ("serve", "services", "check", "pull", "models", "push", "run")
HEAVY = ("aiohttp", "huggingface_hub", "msgspec", "numpy", "runpod", "structlog", "torch", "transformers")

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
handler = "tests.test_cli:Speech"
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


class BreaksDown(Upper):
    """Loses its device with the first job."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        raise ModelBroken("the device is gone")


@attrs.frozen
class SpeechOutput:
    audio: str


class Speech(Upper):
    """Answers with a text as if it were audio."""

    Output = SpeechOutput  # type: ignore[assignment]  # not the text that Upper gives

    def postprocess(self, result: TextOutput) -> Any:
        return SpeechOutput("?" if result.text == "BROKEN" else base64.b64encode(result.text.encode() * 50).decode())


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


# --- the command line itself ---


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


# --- services ---


def test_services_lists_the_profile_and_all_profiles(cli: Cli) -> None:
    code, out, _ = cli("services", "--profile", "all")
    lines = [line.split() for line in out.splitlines()]
    assert code == Exit.OK
    assert lines[0] == ["profile", "all"]
    assert ["upper", "tests.fakes:Upper", ".", "cpu", "4", "1.5"] in lines
    assert ["demo", "echo"] in lines
    assert ["*", "all", "echo,", "upper,", "unloadable,", "speech"] in lines


# --- check ---


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
        ('model = "nowhere"', "model     model 'nowhere': no such folder"),
        ("memory_gib = 1e6", "memory    all services together: it needs 1e+06 GiB on cpu"),
        ('device = "cuda:99"', "device    cuda:99 cannot be used here"),
    ],
    ids=["no module", "no class", "no model", "memory", "device"],
)  # fmt: skip
def test_check_names_what_is_wrong(cli: Cli, setting: str, complaint: str) -> None:
    Path("services.toml").write_text(f"{SETTINGS}\n[profiles.wrong.services.echo]\n{setting}\n", encoding="utf-8")
    code, out, _ = cli("check", "--profile", "wrong")
    assert f"  WRONG {complaint}" in out
    assert out.endswith("1 thing wrong\n")
    assert code == Exit.FAILED


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
        ('host = "0.0.0.0"', "  note  access    whoever reaches 0.0.0.0:8001 may call: no api_keys are set"),
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


# --- pull ---


def test_pull_says_where_each_model_lies(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("pull", "--profile", "all")
    assert code == Exit.OK
    assert out.splitlines()[:2] == ["echo: needs no model", "upper: ."]


def test_pull_brings_the_folders_that_options_name(cli: Cli) -> None:
    lines = "shelved: needs no model\nshelved options.shelf: .\n"
    assert cli("pull", "--profile", "shelved") == (Exit.OK, lines, "")
    assert cli("pull", "--profile", "shelved", "shelved") == (Exit.OK, lines, "")
    Path("services.toml").write_text(SETTINGS.replace('shelf = "."', 'shelf = "nowhere"'), encoding="utf-8")
    code, _, err = cli("pull", "shelved")
    assert code == Exit.FAILED
    assert err.startswith("aiservices: options.shelf: 'nowhere': no such folder (/")


# --- run ---


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
        (["speech", "text=broken", "--output", "x.wav"], Exit.FAILED, "the output's audio is not base64"),
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
    assert json.loads(out) == {"audio": "hi.wav"}
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
    service = make_service(Upper())
    from aiservices.jobs import JobRequest

    job = service.submit(JobRequest(input={"text": "hi"}))
    assert progress_line(service, job) == "the model is waiting to be loaded"
    job.start("worker")
    assert progress_line(service, job) == "running for 0 s"
    job.set_progress(1, 0.5)
    assert progress_line(service, job) == "[###############...............]  50%"
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


def until(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came")


# --- the fields of run ---


@attrs.frozen
class Fields:
    text: str = ""
    count: int = 0
    maybe: int | None = None
    share: float = 0.0
    flag: bool = False
    words: list[str] = attrs.Factory(list)
    image_url: str | None = None


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        (["text=3"], {"text": "3"}),
        (["text=a=b"], {"text": "a=b"}),
        (["text="], {"text": ""}),
        (["text=@@home"], {"text": "@home"}),
        (["count=3"], {"count": 3}),
        (["count=three"], {"count": "three"}),
        (["maybe=3"], {"maybe": 3}),
        (["share=0.5"], {"share": 0.5}),
        (["flag=true"], {"flag": True}),
        (['words=["a", "b"]'], {"words": ["a", "b"]}),
        (["words=a", "words=b", "words=c"], {"words": ["a", "b", "c"]}),
        (["image_url=http://a/b.png"], {"image_url": "http://a/b.png"}),
        (["unknown=3"], {"unknown": "3"}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_word_is_read_by_the_type_of_its_field(words: list[str], payload: dict[str, object]) -> None:
    assert read_fields(Fields, words) == payload


def test_a_file_becomes_a_data_url_or_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.txt").write_text("two\nlines\n", encoding="utf-8")
    payload = read_fields(Fields, [f"image_url=@{tmp_path}/a.png", f"text=@{tmp_path}/a.txt"])
    assert payload == {"image_url": "data:image/png;base64,iVBORw==", "text": "two\nlines"}


def test_standard_input_is_a_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert read_fields(Fields, ["text=@-"]) == {"text": "piped"}


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InvalidInput, match=r"\$\.text: the file is not text"):
        read_fields(Fields, [f"text=@{tmp_path}/a.png"])


# --- serve ---


class Server:
    """A server in this loop: its lines, its address, the exit codes that it was to leave with."""

    def __init__(self, handler: str = "aiservices.handlers.echo:Echo", *, host: str = "127.0.0.1") -> None:
        service = ServiceConfig(name="echo", handler=handler, device="cpu")
        settings = ServerConfig(host=host, port=0, grace_s=20)
        self.config = Config(server=settings, profile="test", services={"echo": service}, profiles=("test",))
        self.lines: list[str] = []
        self.left: asyncio.Queue[int] = asyncio.Queue()
        self.ready = asyncio.Event()
        self.task = asyncio.create_task(serve(self.config, say=self._say, leave=self.left.put_nowait))

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if line.endswith("/run"):
            self.ready.set()

    @property
    def url(self) -> str:
        return self.lines[-1].strip().removesuffix("/run")

    async def draining(self, session: aiohttp.ClientSession) -> None:
        """Wait until the signal has arrived."""
        shown = {"draining": False}
        while not shown["draining"]:
            async with session.get(self.lines[1].split()[0] + "readyz") as answer:
                shown = await answer.json()

    async def post(self, session: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
        async with session.post(self.url + path, json=body) as answer:
            return answer.status, await answer.json()


async def test_serve_listens_at_once_and_names_every_url() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        status, answer = await server.post(session, "/runsync", input={"text": "hi"})
        assert (status, answer["output"]["text"]) == (200, "hi")
    port = server.url.split(":")[2].split("/")[0]
    assert [line.split()[0] for line in server.lines[1:]] == [
        f"http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}/openapi.json",
        f"http://127.0.0.1:{port}/echo/api/v1/run",
    ]
    signal.raise_signal(signal.SIGINT)
    assert await server.task is Exit.OK


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://localhost:"), ("::1", "http://[::1]:")]
)
async def test_the_urls_can_be_clicked_whatever_the_host(host: str, shown: str) -> None:
    server = Server(host=host)
    await server.ready.wait()
    assert server.url.startswith(shown)
    signal.raise_signal(signal.SIGTERM)
    assert await server.task is Exit.OK


async def test_after_the_first_signal_running_jobs_end_and_new_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiservices.cli.serve.LINGER_S", 0.5)
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, job = await server.post(session, "/run", input={"text": "hi", "seconds": 0.5})
        signal.raise_signal(signal.SIGTERM)
        await server.draining(session)
        status, refusal = await server.post(session, "/run", input={"text": "too late"})
        assert (status, refusal["error"]) == (503, "the server is shutting down")
        async with session.get(f"{server.url}/status-sync/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
        await asyncio.sleep(0.1)  # a caller that polls comes later, and still finds the result
        async with session.get(f"{server.url}/status/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
    assert await server.task is Exit.OK
    assert server.left.empty()


async def test_the_second_signal_leaves_at_once() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        await server.post(session, "/run", input={"text": "hi", "seconds": 60})
        signal.raise_signal(signal.SIGTERM)
        await server.draining(session)
        signal.raise_signal(signal.SIGTERM)
        assert await server.left.get() == 128 + signal.SIGTERM
    server.task.cancel()
    await asyncio.gather(server.task, return_exceptions=True)


async def test_a_broken_device_ends_the_process_with_a_code_of_its_own() -> None:
    server = Server("tests.test_cli:BreaksDown")
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, answer = await server.post(session, "/runsync", input={"text": "hi"})
        assert (answer["status"], answer["error"]) == ("FAILED", "the device is gone")
    assert await server.task is Exit.BROKEN


async def test_a_caller_that_hangs_up_cancels_nothing() -> None:
    server = Server()
    await server.ready.wait()
    async with aiohttp.ClientSession() as session:
        _, job = await server.post(session, "/run", input={"text": "hi", "seconds": 0.3})
        with pytest.raises(TimeoutError):
            async with session.get(f"{server.url}/status-sync/{job['id']}", timeout=aiohttp.ClientTimeout(0.05)):
                pass
        async with session.get(f"{server.url}/status-sync/{job['id']}") as answer:
            assert (await answer.json())["status"] == "COMPLETED"
    signal.raise_signal(signal.SIGTERM)
    await server.task


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use; stop"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"^cannot listen on 192\.0\.2\.1:8001: Cannot assign requested address$"):
        bind("192.0.2.1", 8001)


def test_a_host_without_an_address_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"^cannot listen on no\.such\.host\.invalid:8001: "):
        bind("no.such.host.invalid", 8001)


def test_nothing_is_loaded_where_the_address_is_taken(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiservices.cli.serve.configure_logging", lambda *arguments: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = cli("serve", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert (code, out) == (Exit.FAILED, "")
    assert "Address already in use; stop what listens there or choose another with --port" in err


def test_the_process_drains_on_sigterm_and_exits_with_zero() -> None:
    command = [sys.executable, "-m", "aiservices", "serve", "--profile", "echo", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        until(process.stdout, "/echo/api/v1/run")
        process.terminate()
        _, log = process.communicate()
    assert process.returncode == Exit.OK
    assert "server.draining" in log
    assert "Traceback" not in log
