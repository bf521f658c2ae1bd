"""Start a peer on a free port, wait until it answers, and end it with all that it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.benchmarks.overhead.peers import TEXT, Peer
from tools.benchmarks.overhead.wire import HOST, Call

START_LIMIT_S = 90.0
STOP_LIMIT_S = 3.0
_FOREIGN = ("AISERVICES_", "RUNPOD_", "BENTOML_", "UVICORN_", "PYTHONPATH")
"""Settings of the caller's own that must not reach what is measured."""


class StartError(Exception):
    """A server did not come up; the text says why."""


@contextmanager
def serving(peer: Peer, python: Path, folder: Path) -> Iterator[int]:
    """Serve a peer; give its port once it has answered a job.

    Args:
        peer: Who.
        python: Its interpreter.
        folder: Where it works, and where its log is written.

    Raises:
        StartError: It ended, or did not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / f"{peer.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command(python, port),
            cwd=peer.checkout or folder,
            env=environment_of(peer, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait(process, peer.runsync, port, log)
        yield port
    finally:
        end(process)


def environment_of(peer: Peer, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a peer is started with: the caller's variables but for settings, and its own."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_FOREIGN)}
    return {**kept, **peer.environ}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and every process of its group."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)


def answers(call: Call, port: int, expect: str = TEXT) -> bool:
    """Whether the call is answered as it should be."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}{call.path}",
        data=call.body.encode(),
        method=call.method,
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=START_LIMIT_S) as answer:
            return expect in answer.read().decode(errors="replace")
    except (OSError, urllib.error.URLError):
        return False


def _wait(process: subprocess.Popen[bytes], call: Call, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if answers(call, port):
            return
        time.sleep(0.1)
    why = "it does not answer" if process.returncode is None else f"it ended with code {process.returncode}"
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
    raise StartError("\n  ".join([f"{why}, all of it in {log}:", *last]))
