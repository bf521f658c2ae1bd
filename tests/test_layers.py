"""What import-linter cannot see: parts of a package, and when something is imported."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiservices
from aiservices.config import load_config

PACKAGE = Path(aiservices.__file__).parent
ROOT = PACKAGE.parent


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("name", "rooms"), [("aiohttp.web", ("cli", "transports/http")), ("runpod", ("cli", "transports/runpod"))]
)
def test_a_transports_library_stays_in_its_transport(name: str, rooms: tuple[str, ...]) -> None:
    users = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word == name or word.startswith(f"{name}.") for word in imports(path))
    ]
    assert [user for user in users if not user.startswith(rooms)] == []


def test_no_handler_imports_its_library_before_it_loads() -> None:
    """So that ``check``, ``services`` and every start that fails early need none of them."""
    path = ROOT / "services.toml"
    services = [s for name in load_config(path, {}).profiles for s in load_config(path, {}, name).services.values()]
    modules = sorted({service.handler.partition(":")[0] for service in services})
    heavy = ("chatterbox", "diffusers", "librosa", "torch", "torchaudio", "transformers")
    program = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    program += f"print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("contract", "key", "spared"),
    [
        (
            "handlers-know-the-contract",
            "forbidden_modules",
            {"context", "demo", "errors", "estimates", "handler", "handlers", "options"},
        ),
        ("core-without-torch", "source_modules", {"handlers", "demo"}),
        ("core-without-transports", "source_modules", {"handlers", "demo", "transports", "cli", "__main__"}),
    ],
)
def test_a_contract_names_every_room_that_it_is_about(contract: str, key: str, spared: set[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(settings[f"importlinter:contract:{contract}"][key].split())
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert named == {f"aiservices.{room}" for room in rooms - spared - {"__init__"}}
