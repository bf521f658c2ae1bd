"""Who is measured: our server, and what one would take instead; how each is started and called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from tools.benchmarks.overhead.wire import HOST, Call, Plan

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ROOT / "tools" / "benchmarks" / "overhead_peers"
TEXT = "a line of text"
BODY = f'{{"input":{{"text":"{TEXT}"}}}}'
OPERATIONS: Mapping[str, str] = {
    "submit": "a job is accepted",
    "runsync": "a job is run and its output comes in the same answer",
    "poll": "a job is accepted, then its state is asked for until it has ended well and its output is there",
}


@attrs.frozen
class Peer:
    """A server that answers the same jobs.

    Attributes:
        name: Word on the command line.
        title: What the table calls it.
        words: Its command line; ``{python}``, ``{bin}`` and ``{port}`` are filled in.
        runsync: The call that waits for the output.
        submit: The call that accepts a job; none where there is none.
        poll: The call that tells a job's state.
        done: The state of a job that ended well.
        result: The call that gets the output where the state does not hold it.
        environ: Variables that it is started with.
        checkout: The folder whose package it runs; none: it has an environment of its own, of ``NAME.txt``.
        start_s: About how many seconds it takes to start, for the estimate.
        note: What to know about its rows.
    """

    name: str
    title: str
    words: Sequence[str]
    runsync: Call
    submit: Call | None = None
    poll: Call | None = None
    done: str = "COMPLETED"
    result: Call | None = None
    environ: Mapping[str, str] = {}
    checkout: Path | None = None
    start_s: float = 3.0
    note: str = ""

    def offers(self, operation: str) -> bool:
        """Whether there is such an operation."""
        return operation == "runsync" or self.submit is not None

    def command(self, python: Path, port: int) -> list[str]:
        """Return the command line for an interpreter and a port."""
        return [word.format(python=python, bin=python.parent, port=port) for word in self.words]

    def plan(self, operation: str, *, port: int, callers: int, warm_up_s: float, seconds: float) -> Plan:
        """Return what the load generator does for one row."""
        plan = Plan(port, callers, warm_up_s, seconds, first=self.runsync, expect=TEXT)
        if operation == "runsync":
            return plan
        assert self.submit is not None
        if operation == "submit":
            return dataclasses.replace(plan, first=self.submit, expect='id":')
        return dataclasses.replace(plan, first=self.submit, poll=self.poll, done=self.done, result=self.result)


def ours(name: str, title: str, checkout: Path) -> Peer:
    """Return the server of a checkout, run by this interpreter, without a journal: no peer has one."""
    knows_journal = (checkout / "aiservices" / "journal").is_dir()  # an earlier one refuses the variable
    return Peer(
        name,
        title,
        words=("{python}", "-m", "aiservices", "serve", "--profile", "echo", "--host", HOST, "--port", "{port}"),
        runsync=Call("POST", "/v2/echo/runsync", BODY),
        submit=Call("POST", "/v2/echo/run", BODY),
        poll=Call("GET", "/v2/echo/status/{id}"),
        environ={
            "AISERVICES_CONFIG": str(checkout / "services.toml"),
            "AISERVICES_LOG_LEVEL": "error",
            "PYTHONPATH": str(checkout),
            **({"AISERVICES_JOURNAL_PATH": "off"} if knows_journal else {}),
        },
        checkout=checkout,
        start_s=2.0,
    )


OURS = ours("aiservices", "aiservices", ROOT)

JOURNAL = attrs.evolve(
    OURS,
    name="journal",
    title="aiservices with its journal",
    environ={**OURS.environ, "AISERVICES_JOURNAL_PATH": str(ROOT / ".bench" / "journal" / "jobs.db")},
    note="each answer waits until what it tells survives `kill -9`.",
)

PEERS = (
    Peer(
        "runpod",
        "RunPod SDK, local server",
        words=(
            *("{python}", str(PROGRAMS / "runpod_local.py"), "--rp_serve_api"),
            *("--rp_api_host", HOST, "--rp_api_port", "{port}"),
        ),
        runsync=Call("POST", "/runsync", BODY),
        submit=Call("POST", "/run", BODY),
        poll=Call("POST", "/status/{id}"),
        environ={"RUNPOD_LOG_LEVEL": "ERROR", "UVICORN_LOG_LEVEL": "warning"},
        start_s=4.0,
        note="`run` only notes the job: the call of its status runs it and forgets it. The ids of all noted jobs are "
        "written out at each `run`, so that `submit`, which asks for no status, slows down as it goes on.",
    ),
    Peer(
        "litserve",
        "LitServe",
        words=("{python}", str(PROGRAMS / "litserve_predict.py"), "{port}"),
        runsync=Call("POST", "/predict", BODY),
        start_s=5.0,
        note="has no jobs to submit; the work is in a process beside the HTTP server's.",
    ),
    Peer(
        "bentoml",
        "BentoML",
        words=(
            *("{bin}/bentoml", "serve", "bentoml_service:Echo", "--working-dir", str(PROGRAMS)),
            *("--host", HOST, "--port", "{port}", "--quiet"),
        ),
        runsync=Call("POST", "/echo", BODY),
        submit=Call("POST", "/echo_task/submit", BODY),
        poll=Call("GET", "/echo_task/status?task_id={id}"),
        done="completed",
        result=Call("GET", "/echo_task/get?task_id={id}"),
        environ={"BENTOML_DO_NOT_TRACK": "True"},
        start_s=5.0,
        note="a task lies in an SQLite file; its output takes a call more than its state.",
    ),
    Peer(
        "fastapi",
        "FastAPI by hand",
        words=("{python}", str(PROGRAMS / "fastapi_by_hand.py"), "{port}"),
        runsync=Call("POST", "/runsync", BODY),
        submit=Call("POST", "/run", BODY),
        poll=Call("GET", "/status/{id}"),
        start_s=2.0,
        note="a thread pool and a dictionary that no job ever leaves: no queue bound, no timeout, no cancel.",
    ),
)
