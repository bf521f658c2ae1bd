"""The checker of histories finds each breach and nothing else; killed in short, the server holds."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.journal.store import Store
from tools.prove.crash.__main__ import main
from tools.prove.crash.faults import FAULTS
from tools.prove.crash.history import Accepted, Asked, Checker, Delivery, History, Sight, Wish
from tools.prove.crash.leftovers import leftovers
from tools.prove.crash.work import filler

SECOND = 10**9


def wish(token: str, **changes: Any) -> Wish:
    usual = {"token": token, "outcome": "ok"}
    made = Wish(token=token, service="line", input=usual, webhook=True, key=False, keep_s=100.0, ordered=True)
    return attrs.evolve(made, **changes)


def completed(job_id: str, token: str, began_ns: int, retries: int = 0) -> dict[str, Any]:
    output = {"token": token, "began_ns": began_ns, "filler": filler(token, began_ns, 0)}
    shown = {"id": job_id, "status": "COMPLETED", "output": output}
    return {**shown, "retries": retries} if retries else shown


def failed(job_id: str, error: str, retries: int = 0) -> dict[str, Any]:
    shown = {"id": job_id, "status": "FAILED", "error": error}
    return {**shown, "retries": retries} if retries else shown


def sight(job_id: str, second: float, shown: dict[str, Any] | None) -> Sight:
    at = int(second * SECOND)
    return Sight(job_id=job_id, sent_ns=at, answered_ns=at + 1000, shown=shown)


def asked(what: str, job_id: str, second: float, status: str | None) -> Asked:
    at = int(second * SECOND)
    return Asked(what=what, job_id=job_id, sent_ns=at, answered_ns=at + 1000, status=status)


def good() -> History:
    """Two jobs of one caller, one after the other: the first is completed, the second fails and is retried."""
    history = History()
    for number, token in ((1, "t1"), (2, "t2")):
        at = number * SECOND
        given = wish(token) if number == 1 else wish(token, input={"token": token, "outcome": "fail"})
        history.accepted.append(Accepted(wish=given, job_id=f"j{number}", sent_ns=at, answered_ns=at + 1000))
    history.runs.update({"t1": [3 * SECOND], "t2": [4 * SECOND, 7 * SECOND]})
    history.sights += [
        sight("j1", 2.5, {"id": "j1", "status": "IN_QUEUE"}),
        sight("j1", 5, completed("j1", "t1", 3 * SECOND)),
        sight("j2", 5, failed("j2", f"t2 {4 * SECOND}")),
        sight("j2", 8, failed("j2", f"t2 {7 * SECOND}", retries=1)),
    ]
    history.asked.append(asked("retry", "j2", 6, "IN_QUEUE"))
    for each in (completed("j1", "t1", 3 * SECOND), failed("j2", f"t2 {7 * SECOND}", retries=1)):
        history.deliveries.append(Delivery(message=f"msg_{each['id']}", body=each, accepted=True))
    return history


def breaches(history: History) -> list[str]:
    return Checker(history, max_attempts=3).breaches()


def test_a_good_history_has_no_breach() -> None:
    assert breaches(good()) == []


def _lost(history: History) -> None:
    history.sights.append(sight("j1", 9, None))


def _unended(history: History) -> None:
    del history.sights[1]
    history.deliveries.pop(0)


def _back_in_the_queue(history: History) -> None:
    history.sights.append(sight("j1", 9, {"id": "j1", "status": "IN_QUEUE"}))
    history.sights.append(sight("j1", 10, completed("j1", "t1", 3 * SECOND)))


def _another_end(history: History) -> None:
    history.runs["t1"].append(6 * SECOND)
    history.sights.append(sight("j1", 9, completed("j1", "t1", 6 * SECOND)))


def _lost_retry(history: History) -> None:
    history.sights.pop()
    history.sights.append(sight("j2", 8, failed("j2", f"t2 {4 * SECOND}")))


def _lost_cancel(history: History) -> None:
    history.asked.append(asked("cancel", "j1", 3, "CANCELLED"))


def _run_too_often(history: History) -> None:
    history.runs["t1"][:0] = [SECOND, 2 * SECOND]


def _foreign_output(history: History) -> None:
    history.sights[1] = sight("j1", 5, completed("j1", "t9", 3 * SECOND))


def _no_output(history: History) -> None:
    shown = completed("j1", "t1", 3 * SECOND)
    del shown["output"]
    history.sights[1] = sight("j1", 5, shown)


def _no_run(history: History) -> None:
    history.runs["t1"] = [2 * SECOND]


def _foreign_reason(history: History) -> None:
    history.sights[1] = sight("j1", 5, failed("j1", "a file of the journal is missing"))


def _swapped(history: History) -> None:
    history.runs["t1"], history.runs["t3"] = [5 * SECOND], [4 * SECOND]
    history.sights[1] = sight("j1", 6, completed("j1", "t1", 5 * SECOND))
    history.accepted.append(Accepted(wish=wish("t3"), job_id="j3", sent_ns=2 * SECOND, answered_ns=3 * SECOND))
    history.sights.append(sight("j3", 6, completed("j3", "t3", 4 * SECOND)))


def _two_jobs_of_a_key(history: History) -> None:
    history.accepted.append(attrs.evolve(history.accepted[0], job_id="j9"))


def _no_webhook(history: History) -> None:
    history.deliveries.pop()


def _two_messages(history: History) -> None:
    history.deliveries.append(attrs.evolve(history.deliveries[0], message="msg_other"))


def _two_contents(history: History) -> None:
    history.deliveries.append(attrs.evolve(history.deliveries[0], body=failed("j1", "t1")))


def _again_and_again(history: History) -> None:
    history.deliveries += history.deliveries[:1] * 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_lost, "was not found"),
        (_unended, "did not end"),
        (_back_in_the_queue, "was COMPLETED and then IN_QUEUE"),
        (_another_end, "ended twice"),
        (_lost_retry, "a retry that had been answered was lost"),
        (_lost_cancel, "a cancellation that had been answered was lost"),
        (_run_too_often, "ran 3 times in 1 attempts"),
        (_foreign_output, "an output that is not its own"),
        (_no_output, "has no output any more"),
        (_no_run, "the output of a run that was none"),
        (_foreign_reason, "failed for no reason of its own"),
        (_swapped, "ran after one that was submitted after its acceptance"),
        (_two_jobs_of_a_key, "one idempotency key, 2 jobs"),
        (_no_webhook, "no webhook told of its end"),
        (_two_messages, "one end was announced by 2 webhook ids"),
        (_two_contents, "came with two contents"),
        (_again_and_again, "had arrived and came again, 9 times"),
    ],
)
def test_a_breach_is_found(change: Callable[[History], None], said: str) -> None:
    history = good()
    change(history)
    assert any(said in breach for breach in breaches(history)), breaches(history)


def test_what_was_forgotten_in_time_is_no_breach_until_it_is_there_again() -> None:
    history = good()
    history.accepted[0] = attrs.evolve(history.accepted[0], wish=wish("t1", keep_s=5.0))
    history.sights.append(sight("j1", 9, None))
    assert breaches(history) == []
    history.sights.append(sight("j1", 10, completed("j1", "t1", 3 * SECOND)))
    assert any("was there again" in breach for breach in breaches(history))


def test_there_are_at_least_ten_faults() -> None:
    assert len(FAULTS) >= 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_short_form_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", "8"]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fault_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", "6", "--fault", "commit-left-out"]) == 0, capsys.readouterr().out


def test_a_file_that_no_row_names_is_found(tmp_path: Path) -> None:

    Store(tmp_path / "jobs.db", "normal", None).close()
    assert leftovers(tmp_path) == []
    (tmp_path / "jobs.db.blobs" / "ab").mkdir(parents=True)
    (tmp_path / "jobs.db.blobs" / "ab" / "abcd").touch()
    assert leftovers(tmp_path) == ["a file that no row names: abcd"]


def test_a_row_that_outlived_its_retention_is_found(tmp_path: Path) -> None:
    Store(tmp_path / "jobs.db", "normal", None).close()
    row = "INSERT INTO jobs VALUES (NULL, ?, 'brief', 1, 0, '', NULL, 'COMPLETED', 1, 0, 0, ?, NULL, NULL, 0)"
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as file, file:
        file.executemany(row, [("old", time.time() - 3600), ("new", time.time())])
    assert leftovers(tmp_path) == ["1 rows of jobs that are forgotten"]
