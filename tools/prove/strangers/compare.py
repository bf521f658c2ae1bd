"""What guards of others, from PyPI, do with the same URLs: each in an environment that has it and not us."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

from tools.prove.strangers.corpus import NAMES, hostile_urls
from tools.prove.strangers.others import GUARDS

ENVIRONMENT = Path(sys.prefix) / "guards"
PACKAGES = (
    "advocate==1.0.0", "requests-hardened==1.3.0", "safehttpx==0.2.0",
    # advocate imports what newer ones dropped
    "urllib3<2", "setuptools<82",
)  # fmt: skip

OUTSIDE = "http://93.184.216.34:8080/"
"""Has to be let through, or a guard that refuses everything would look perfect."""

PORT = 8080
"""Which every guard allows."""


def compare() -> None:
    """Print how many of the hostile URLs each guard lets lead inside."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    urls = [OUTSIDE, *hostile_urls(PORT)]
    for guard in GUARDS:
        reached = led_inside(python, guard, urls)
        examples = " ".join([url for url in reached["inside"] if url.isprintable()][:3])
        works = "" if OUTSIDE in reached["begun"] else "   (and no public address either)"
        print(f"{guard:18} {len(reached['inside']):4} of {len(urls) - 1} lead inside{works}   {examples}")


def led_inside(python: Path, guard: str, urls: list[str]) -> dict[str, list[str]]:
    """Have a guard asked for URLs; those by which a connection was ``begun``, and those that led ``inside``."""
    program = Path(__file__).with_name("others.py")
    asked = json.dumps({"urls": urls, "names": NAMES})
    done = subprocess.run([python, program, guard], input=asked, capture_output=True, text=True, check=True)
    reached: dict[str, list[str]] = json.loads(done.stdout)
    return reached
