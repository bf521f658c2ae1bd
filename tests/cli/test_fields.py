"""The words of ``run`` as fields of an input."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiservices.cli.fields import read_fields
from aiservices.errors import InvalidInput


@attrs.frozen
class Fields:
    text: str = ""
    count: int = 0
    maybe: int | None = None
    share: float = 0.0
    flag: bool = False
    words: list[str] = attrs.Factory(list)
    image_url: str | None = None
    image_urls: list[str] | None = None
    json_schema: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        (["text=3"], {"text": "3"}),
        (["text=a=b"], {"text": "a=b"}),
        (["text="], {"text": ""}),
        (["text=@@home"], {"text": "@home"}),
        (["count=3"], {"count": 3}),
        (["count=three"], {"count": "three"}),
        (["maybe=3"], {"maybe": 3}),
        (["share=0.5"], {"share": 0.5}),
        (["flag=true"], {"flag": True}),
        (['words=["a", "b"]'], {"words": ["a", "b"]}),
        (["words=a", "words=b", "words=c"], {"words": ["a", "b", "c"]}),
        (["image_url=http://a/b.png"], {"image_url": "http://a/b.png"}),
        (["image_urls=http://a/b.png"], {"image_urls": ["http://a/b.png"]}),
        (["image_urls=http://a/b.png", "image_urls=http://a/c.png"], {"image_urls": ["http://a/b.png", "http://a/c.png"]}),
        (['json_schema={"type": "object"}'], {"json_schema": {"type": "object"}}),
        (["unknown=3"], {"unknown": "3"}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_word_is_read_by_the_type_of_its_field(words: list[str], payload: dict[str, object]) -> None:
    assert read_fields(Fields, words) == payload


def test_a_file_becomes_a_data_url_or_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.txt").write_text("two\nlines\n", encoding="utf-8")
    payload = read_fields(Fields, [f"image_url=@{tmp_path}/a.png", f"text=@{tmp_path}/a.txt"])
    assert payload == {"image_url": "data:image/png;base64,iVBORw==", "text": "two\nlines"}


def test_files_of_a_list_become_data_urls_and_one_of_json_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.json").write_text('{"type": "object"}', encoding="utf-8")
    url = "data:image/png;base64,iVBORw=="
    words = [f"image_urls=@{tmp_path}/a.png", f"image_urls=@{tmp_path}/a.png", f"json_schema=@{tmp_path}/a.json"]
    assert read_fields(Fields, words) == {"image_urls": [url, url], "json_schema": {"type": "object"}}
    assert read_fields(Fields, words[:1]) == {"image_urls": [url]}


def test_standard_input_is_a_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert read_fields(Fields, ["text=@-"]) == {"text": "piped"}


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InvalidInput, match=r"\$\.text: the file is not text"):
        read_fields(Fields, [f"text=@{tmp_path}/a.png"])
