from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.tools.benchmarks.test_overhead_report import outcome
from tools.benchmarks.overhead import __main__ as program
from tools.benchmarks.overhead.environments import SetupError, environment, interpreter, pinned
from tools.benchmarks.overhead.measure import Bench, estimate_s, measure_all, rows_of, turned
from tools.benchmarks.overhead.peers import OURS, PEERS, PROGRAMS, ROOT, Peer, ours
from tools.benchmarks.overhead.report import Row
from tools.benchmarks.overhead.servers import StartError, environment_of, serving
from tools.benchmarks.overhead.wire import Call, Outcome

LITSERVE = next(peer for peer in PEERS if peer.name == "litserve")
PYTHON = Path(sys.executable)


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--rounds 0", "argument --rounds: '0' is no whole number from 1 on"),
        ("--rounds two", "argument --rounds: 'two' is no whole number from 1 on"),
        ("--seconds 0.01", "argument --seconds: '0.01' is no number of seconds from 0.1 on"),
        ("--seconds nan", "argument --seconds: 'nan' is no number of seconds from 0.1 on"),
        ("--callers 1,-2", "argument --callers: '-2' is no whole number from 1 on"),
        ("--only litserv", "argument --only: there is no 'litserv'; there are: runpod, litserve, bentoml, fastapi"),
        ("--operations wait", "argument --operations: there is no 'wait'; there are: submit, runsync, poll"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_there_is(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        program.parser().parse_args(arguments.split())
    assert exit_code.value.code == 2
    assert complaint in capsys.readouterr().err


def test_words_and_numbers_come_in_their_own_order_and_once() -> None:
    options = program.parser().parse_args(["--only", "fastapi,runpod", "--callers", "8,1,8"])
    assert (options.only, options.callers, options.rounds, options.seconds) == (["runpod", "fastapi"], [1, 8], 5, 4.0)


def test_another_checkout_is_a_server_of_its_own(tmp_path: Path) -> None:
    options = program.parser().parse_args(["--only", "fastapi", "--ours", str(tmp_path / "old")])
    peers = program.chosen(options)
    assert [peer.name for peer in peers] == ["aiservices", "journal", "old", "fastapi"]
    assert peers[2].environ["PYTHONPATH"] == str(tmp_path / "old")


def test_two_checkouts_of_one_name_are_refused(tmp_path: Path) -> None:
    options = program.parser().parse_args(["--ours", str(tmp_path / "a" / "x"), "--ours", str(tmp_path / "b" / "x")])
    with pytest.raises(SetupError, match="two servers would be called x"):
        program.chosen(options)


def test_a_folder_that_holds_no_checkout_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetupError, match="holds no package aiservices"):
        program.interpreters([ours("old", "old", tmp_path)])


def test_this_checkout_is_run_by_this_interpreter() -> None:
    assert interpreter(OURS) == PYTHON


# --- what is installed ---


class Pip:
    """Stands in for every command that installs: notes it, and fails where it should."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails = False

    def __call__(self, command: Sequence[str], **how: Any) -> None:
        self.commands.append(list(command))
        if command[2] == "venv":
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        elif self.fails:
            os.write(how["stdout"], b"first\n\nERROR: no such version\n")
            raise subprocess.CalledProcessError(1, command)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    file = tmp_path / "wanted.txt"
    file.write_text("a==1\n", encoding="utf-8")
    return file


def test_an_environment_is_made_once_for_what_is_wanted(pip: Pip, wanted: Path, tmp_path: Path) -> None:
    python = environment("peer", tmp_path / "bench", wanted)
    assert python == tmp_path / "bench" / "peer" / "bin" / "python"
    assert [command[2] for command in pip.commands] == ["venv", "pip"]
    assert environment("peer", tmp_path / "bench", wanted) == python
    assert len(pip.commands) == 2
    wanted.write_text("a==2\n", encoding="utf-8")
    environment("peer", tmp_path / "bench", wanted)
    assert len(pip.commands) == 4


def test_an_installation_that_fails_says_why_and_is_tried_again(pip: Pip, wanted: Path, tmp_path: Path) -> None:
    pip.fails = True
    for _ in range(2):
        with pytest.raises(SetupError, match=r"(?s)peer\.install\.log.*no such version"):
            environment("peer", tmp_path / "bench", wanted)
    assert len(pip.commands) == 4


def test_a_peer_that_cannot_be_installed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(peer: Peer) -> Path:
        if peer is LITSERVE:
            raise SetupError("no wheel")
        return PYTHON

    monkeypatch.setattr(program, "interpreter", fake)
    assert "litserve" not in program.interpreters([OURS, *PEERS])
    assert capsys.readouterr().err == "LitServe is left out, it could not be installed: no wheel\n"


@pytest.mark.parametrize("name", [*(peer.name for peer in PEERS), "client"])
def test_every_environment_is_pinned(name: str) -> None:
    file = PROGRAMS / f"{name}.txt"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(pinned(file)) == len(lines) > 0


def test_the_sdk_beside_us_is_one_that_our_worker_runs_with() -> None:
    def release(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    allowed = (ROOT / "requirements" / "runpod.no-deps.txt").read_text(encoding="utf-8")
    bounds = re.search(r"^runpod>=([\d.]+),<([\d.]+)$", allowed, re.MULTILINE)
    pin = re.search(r"^runpod==([\d.]+)$", (PROGRAMS / "runpod.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert bounds
    assert pin
    assert release(bounds[1]) <= release(pin[1]) < release(bounds[2])


# --- rounds ---


def test_only_what_a_server_offers_is_a_row() -> None:
    rows = rows_of([OURS, LITSERVE], ["submit", "runsync"], [1, 8])
    assert [(row.peer.name, row.operation, row.callers) for row in rows] == [
        ("aiservices", "submit", 1),
        ("aiservices", "submit", 8),
        ("aiservices", "runsync", 1),
        ("litserve", "runsync", 1),
        ("aiservices", "runsync", 8),
        ("litserve", "runsync", 8),
    ]


def test_every_round_holds_every_row_and_begins_with_another_one_what_is_compared_side_by_side() -> None:
    rows = rows_of([OURS, *PEERS], ["submit", "runsync", "poll"], [1, 32])
    orders = [turned(rows, number) for number in range(5)]
    assert all(set(order) == set(rows) and len(order) == len(rows) for order in orders)
    assert orders[0] == rows
    assert len({order[0] for order in orders}) == 5
    firsts = {next(row.peer.name for row in order if row.operation == "runsync") for order in orders}
    assert len(firsts) == 5
    for order in orders:
        changes = sum((a.operation, a.callers) != (b.operation, b.callers) for a, b in itertools.pairwise(order))
        assert changes == 5


def test_a_server_that_does_not_come_up_is_left_out_of_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Row] = []

    def measure(row: Row) -> Outcome:
        asked.append(row)
        if row.peer is LITSERVE:
            raise StartError("no socket")
        return outcome(100)

    rows = rows_of([OURS, LITSERVE], ["runsync"], [1, 8])
    measured = measure_all(rows, 2, measure)
    assert [row.peer.name for row in measured] == ["aiservices", "aiservices"]
    assert sum(row.peer is LITSERVE for row in asked) == 1
    assert "LitServe is left out from here on: no socket" in capsys.readouterr().err


def test_a_row_without_a_figure_leaves_the_other_rounds_standing(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = iter([outcome(100), None, outcome(300)])

    def measure(row: Row) -> Outcome:
        found = next(outcomes)
        if found is None:
            raise subprocess.CalledProcessError(1, ["load"])
        return found

    (rates,) = measure_all([Row(OURS, "submit", 1)], 3, measure).values()
    assert [one and one.requests_per_s for one in rates] == [100, None, 300]
    assert "no figure" in capsys.readouterr().err


def test_the_estimate_grows_with_rounds_and_seconds() -> None:
    rows = rows_of([OURS], ["submit"], [1])
    assert estimate_s(rows, 10, 4.0) == 10 * estimate_s(rows, 1, 4.0)
    assert estimate_s(rows, 1, 5.0) == estimate_s(rows, 1, 4.0) + 1


# --- servers ---

SERVER = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        text = b"a line of text"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
open("pids", "w").write(" ".join(map(str, [os.getpid(), child.pid])))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
LITTLE = Peer("little", "Little", words=("{python}", "-c", SERVER, "{port}"), runsync=Call("POST", "/", "{}"))


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be read off."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes run")
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_server_ends_with_all_that_it_started(error: type[BaseException] | None, tmp_path: Path) -> None:
    def use() -> list[int]:
        with serving(LITTLE, PYTHON, tmp_path) as port:
            assert port > 0
            pids = [int(word) for word in (tmp_path / "pids").read_text(encoding="utf-8").split()]
            assert all(map(is_running, pids))
            if error:
                raise error
        return pids

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    pids = [int(word) for word in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    while any(map(is_running, pids)):
        pass


def test_a_server_that_ends_at_once_says_what_it_printed(tmp_path: Path) -> None:
    broken = attrs.evolve(LITTLE, words=("{python}", "-c", "raise SystemExit('no model')"))
    with (
        pytest.raises(StartError, match=r"(?s)it ended with code 1, all of it in .*little\.log:\n  no model"),
        serving(broken, PYTHON, tmp_path),
    ):
        pass


def test_settings_of_the_caller_do_not_reach_what_is_measured() -> None:
    environ = environment_of(OURS, {"PATH": "/bin", "AISERVICES_API_KEYS": "k", "RUNPOD_X": "y", "PYTHONPATH": "z"})
    assert environ == {"PATH": "/bin", **OURS.environ}


@pytest.mark.parametrize("operation", ["submit", "runsync", "poll"])
def test_our_own_server_is_measured_without_an_error(operation: str, tmp_path: Path) -> None:
    bench = Bench(PYTHON, None, {OURS.name: PYTHON}, tmp_path, seconds=0.2, warm_up_s=0.1)
    found = bench.measure(Row(OURS, operation, 2))
    assert found.requests > 0
    assert (found.errors, found.first_error) == (0, "")
