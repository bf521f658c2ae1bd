"""The service that is killed: it writes down each run of a job before it does anything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from aiservices.errors import JobFailed
from aiservices.handler import BatchHandler, Task
from aiservices.options import read_options


@attrs.frozen
class WorkInput:
    """What to do: take ``seconds``, then end with ``outcome``; ``padding`` makes the request a large one."""

    token: str
    seconds: float = 0.0
    size: int = 0
    outcome: Literal["ok", "fail", "crash"] = "ok"
    padding: str = ""


@attrs.frozen
class WorkOutput:
    """The token, when this run of it began (monotonic, ns), and ``size`` letters that follow from both."""

    token: str
    began_ns: int
    filler: str


@attrs.frozen
class WorkOptions:
    """``log``: the file that gets a line ``TOKEN BEGAN_NS`` for each run."""

    log: str


class Work(BatchHandler[WorkInput, WorkOutput]):
    """A model whose runs can be counted by others than the server."""

    Options = WorkOptions

    def __init__(self) -> None:
        self._log = -1

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Open the log."""
        self._log = os.open(read_options(WorkOptions, options).log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def predict(self, tasks: Sequence[Task[WorkInput]]) -> list[WorkOutput | Exception]:
        """Write the runs down, take as long as the slowest job says, and answer."""
        began_ns = time.monotonic_ns()
        os.write(self._log, "".join(f"{task.item.token} {began_ns}\n" for task in tasks).encode())
        if any(task.item.outcome == "crash" for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(max(task.item.seconds for task in tasks))
        return [_answer(task.item, began_ns) for task in tasks]


def _answer(item: WorkInput, began_ns: int) -> WorkOutput | Exception:
    if item.outcome == "fail":
        return JobFailed(f"{item.token} {began_ns}")
    return WorkOutput(item.token, began_ns, filler(item.token, began_ns, item.size))


def filler(token: str, began_ns: int, size: int) -> str:
    """Return that many letters which no other run has."""
    unit = f"{token}/{began_ns}/"
    return (unit * (size // len(unit) + 1))[:size]
