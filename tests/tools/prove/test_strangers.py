"""The proof of the guard holds in short, and fails where the guard does not guard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aiservices.fetch.addresses import AllowList
from tools.prove.strangers.__main__ import main
from tools.prove.strangers.compare import OUTSIDE, led_inside
from tools.prove.strangers.corpus import hostile_urls
from tools.prove.strangers.hosts import BEHAVIOURS
from tools.prove.strangers.others import is_inside

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


@pytest.mark.parametrize(
    ("address", "inside"),
    [("127.0.0.1", True), ("fe80::1%lo", True), ("::ffff:10.0.0.1", True), ("100.64.0.1", True), ("8.8.8.8", False)],
)
def test_which_addresses_another_guard_should_not_have_let_through(address: str, inside: bool) -> None:
    assert is_inside(address) is inside


def test_without_a_guard_urls_lead_inside() -> None:
    urls = [OUTSIDE, "http://2130706433:8080/", "http://inside.test:8080/", "http://[::1"]
    reached = led_inside(Path(sys.executable), "requests", urls)
    assert reached == {"begun": urls[:3], "inside": urls[1:3]}
