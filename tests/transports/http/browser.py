"""A real browser without a window, if there is one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000", "--dump-dom"),
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")


async def dump(url: str, profile: Path, *flags: str) -> str:
    """Open a page; return its document once its scripts have run."""
    assert BROWSER is not None
    browser = await asyncio.create_subprocess_exec(
        BROWSER,
        *FLAGS,
        *flags,
        f"--user-data-dir={profile}",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(browser.communicate(), 40)
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    return output.decode()
