from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.prove.chaos.__main__ import Run, main
from tools.prove.chaos.days import DAYS
from tools.prove.crash.history import Accepted, Sight, Wish


@pytest.mark.parametrize("status", ["IN_QUEUE", "IN_PROGRESS"])
def test_a_job_that_does_not_end_is_a_breach(tmp_path: Path, status: str) -> None:
    run = Run(DAYS["hang"], tmp_path, random.Random(0))
    wish = Wish(token="t1", service="trouble", input={}, webhook=False, key=False, keep_s=9.0, ordered=False)
    run.history.accepted.append(Accepted(wish=wish, job_id="j1", sent_ns=0, answered_ns=1))
    run.history.sights.append(Sight(job_id="j1", sent_ns=2, answered_ns=3, shown={"id": "j1", "status": status}))
    run._check()
    assert any("j1" in breach for breach in run.breaches), run.breaches
    assert run.ends == {status: 1}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_bad_day_is_survived_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", str(len(DAYS))]) == 0, capsys.readouterr().out
