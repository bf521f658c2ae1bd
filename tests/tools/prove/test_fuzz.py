"""The short form of the fuzzing, over the kept files, and that it finds what it should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from aiservices.errors import InvalidInput
from tools.prove.fuzz.__main__ import main
from tools.prove.fuzz.mutate import MAX_BYTES, mutate, mutate_json
from tools.prove.fuzz.targets import CORPORA, TARGETS, corpus

pytest.importorskip("PIL", reason="pip install pillow (the qwen extra)")
pytest.importorskip("soundfile", reason="pip install soundfile (the chatterbox extra)")


@pytest.mark.parametrize("name", TARGETS)
def test_the_short_form_holds(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", name, "--runs", "150", "--minutes", "1", "--found", str(tmp_path)]) == 0, capsys.readouterr()
    assert " 150 tried" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("in a child: no"), "RuntimeError: in a child: no"), (InvalidInput("", "no"), "no field is named")],
)
def test_what_ends_otherwise_is_found_and_kept(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(TARGETS, "body", fail)
    assert main(["--only", "body", "--runs", "1", "--found", str(tmp_path)]) == 1
    assert said in capsys.readouterr().out
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == corpus("body")[0]


def test_the_kept_files_are_small_and_of_every_kind() -> None:
    assert sum(path.stat().st_size for path in CORPORA.rglob("*") if path.is_file()) < 300_000
    assert {path.suffix for path in (CORPORA / "picture").iterdir()} >= {
        ".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif",
    }  # fmt: skip


def test_the_same_seed_does_the_same_damage() -> None:
    data, other = bytes(range(256)), b"other" * 20
    for damage in (mutate, mutate_json):
        once, again = (
            [damage(data, other, chance) for _ in range(200)] for chance in (random.Random(1), random.Random(1))
        )
        assert once == again
        assert len(set(once)) > 100
        assert max(map(len, once)) <= MAX_BYTES


def test_what_was_put_into_one_body_is_not_in_the_next() -> None:
    body, chance = b'{"input": {"text": "mug"}}', random.Random(2)
    made = [mutate_json(body, body, chance) for _ in range(5000)]
    assert max(map(len, made)) < 3 * 70_000 + 1000
