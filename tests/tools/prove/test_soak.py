from __future__ import annotations

from pathlib import Path

import pytest

from aiservices.journal.store import Store
from tools.prove.soak.__main__ import grown, kept, main


def test_what_may_grow_is_memory_alone_and_that_a_little() -> None:
    before = {"tasks": 2, "resident_bytes": 1000}
    assert grown(before, {"tasks": 2, "resident_bytes": 1050}) == []
    assert grown(before, {"tasks": 1, "resident_bytes": 10}) == []
    assert grown(before, {"tasks": 3, "resident_bytes": 1051}) == [
        "tasks: 3, 2 are allowed",
        "resident_bytes: 1051, 1050 are allowed",
    ]


def test_a_file_that_outlived_its_job_is_found(tmp_path: Path) -> None:
    Store(tmp_path / "jobs.db", "normal", None).close()
    assert kept(tmp_path / "jobs.db") == []
    (tmp_path / "jobs.db.blobs" / "ab").mkdir(parents=True)
    (tmp_path / "jobs.db.blobs" / "ab" / "abcd").touch()
    assert kept(tmp_path / "jobs.db") == ["the journal kept 0 rows and 1 files"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_short_form_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "6000", "--first", "3000"]) == 0, capsys.readouterr().out
