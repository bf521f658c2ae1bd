"""The playground in a real browser, if there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes import Counting, Upper
from tests.transports.http.apps import MakeClient, loaded, make_app
from tests.transports.http.browser import dump, needs_browser

STATIC = Path(__file__).parents[3] / "aiservices/transports/http/static"


@needs_browser
async def test_the_page_builds_the_form_of_the_chosen_service(aiohttp_client: MakeClient, tmp_path: Path) -> None:
    client = await aiohttp_client(make_app(Upper, Counting))
    await loaded(client)
    page = await dump(str(client.make_url("/#counting")), tmp_path)
    assert re.findall(r'<button[^>]*aria-current="(\w+)"', page) == ["false", "true"]
    assert '<h2 id="service-title">counting</h2>' in page
    assert re.search(r'<label for="field-text">Text \*</label>', page)
    assert re.search(r'<input[^>]*type="number"[^>]*id="field-count"', page)
    assert "Any text." in page
    assert "/counting/api/v1/runsync" in page
    assert re.search(r'<p id="error"[^>]*hidden=""', page)


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_the_page_loads_nothing_from_elsewhere_and_needs_no_inline_code(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""(src|href|url|from|import)\s*[=(]?\s*["']?(https?:)?//""", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


def test_every_id_that_the_script_uses_is_on_the_page() -> None:
    used = set(re.findall(r'byId\("([\w-]+)"\)', (STATIC / "app.js").read_text()))
    there = set(re.findall(r'id="([\w-]+)"', (STATIC / "index.html").read_text()))
    assert used <= there
