"""The proof of the guard holds in short, and fails where the guard does not guard."""

from __future__ import annotations

import pytest

from aiservices.fetch.addresses import AllowList
from tools.prove.strangers.__main__ import main
from tools.prove.strangers.corpus import hostile_urls
from tools.prove.strangers.hosts import BEHAVIOURS

pytest.importorskip("botocore", reason="pip install aioboto3 (the s3 extra)")

pytestmark = pytest.mark.filterwarnings("ignore:.*utcnow.*:DeprecationWarning")


def test_there_are_at_least_400_urls_and_each_once() -> None:
    urls = hostile_urls(80)
    assert len(set(urls)) == len(urls) >= 400


def test_the_short_form_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--urls", "60", "--answers", "3"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_answer_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--urls", "1", "--answers", str(len(BEHAVIOURS))]) == 0, capsys.readouterr().out


def test_a_guard_that_permits_everything_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AllowList, "permits", lambda *_: True)
    assert main(["--urls", "1", "--answers", "0"]) == 1
    assert "heard there: 0" not in capsys.readouterr().out
