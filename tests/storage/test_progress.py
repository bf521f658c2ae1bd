from __future__ import annotations

import pytest

from aiservices.storage.progress import REPORT_INTERVAL_S, Progress, ProgressReporter, readable


def test_the_first_and_the_last_are_reported_and_others_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("aiservices.storage.progress.time.monotonic", lambda: now)
    reports: list[Progress] = []
    reporter = ProgressReporter(reports.append)
    reporter.start(Progress(0, 2, 10, 100))
    reporter.add(bytes=40)
    assert reports == [Progress(0, 2, 10, 100)]
    now += 2 * REPORT_INTERVAL_S
    reporter.add(files=1)
    assert reports[1:] == [Progress(1, 2, 50, 100)]
    reporter.add(bytes=-40)
    reporter.finish()
    assert reports[2:] == [Progress(1, 2, 10, 100)]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (2**40, "1024.0 GiB")]
)
def test_bytes_are_written_as_people_read_them(count: int, text: str) -> None:
    assert readable(count) == text
