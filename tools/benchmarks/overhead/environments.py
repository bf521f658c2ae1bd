"""A virtual environment for each peer, made once under ``.bench/``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.benchmarks.overhead.peers import PROGRAMS, ROOT, Peer

FOLDER = ROOT / ".bench"
INSTALL_LIMIT_S = 900.0
_VERSIONS = (
    "import importlib.metadata as m, json, sys\nprint(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
)


class SetupError(Exception):
    """An environment cannot be made, or a checkout cannot be served; the text says why."""


def environment(name: str, folder: Path = FOLDER, requirements: Path | None = None) -> Path:
    """Return the interpreter of the environment that holds ``NAME.txt``; make it first if it is missing or another.

    Raises:
        SetupError: It cannot be made.
    """
    wanted = requirements or PROGRAMS / f"{name}.txt"
    place, log = folder / name, folder / f"{name}.install.log"
    stamp, content = place / "installed.txt", f"{sys.version}\n{wanted.read_text(encoding='utf-8')}"
    python = place / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == content):
        print(f"installing {wanted.name} into {place} ...", file=sys.stderr, flush=True)
        folder.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(place)],
                [str(python), "-m", "pip", "install", "--no-input", "--requirement", str(wanted)],
            ):
                _run(command, output.fileno(), log)
        stamp.write_text(content, encoding="utf-8")
    return python


def _run(command: Sequence[str], output: int, log: Path) -> None:
    try:
        subprocess.run(command, stdout=output, stderr=output, check=True, timeout=INSTALL_LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-3:]
        raise SetupError("\n  ".join([f"{type(error).__name__}, all of it in {log}:", *last])) from error


def interpreter(peer: Peer) -> Path:
    """Return the interpreter that runs a peer: of its environment, or this one for a checkout.

    Raises:
        SetupError: The environment cannot be made, or the checkout does not hold the package.
    """
    if peer.checkout is None:
        return environment(peer.name)
    program = "import aiservices; print(aiservices.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=peer.checkout, capture_output=True, text=True, check=False
    )
    if not Path(done.stdout.strip()).is_relative_to(peer.checkout.resolve()):
        raise SetupError(f"{peer.checkout} holds no package aiservices: {(done.stderr or done.stdout).strip()[-300:]}")
    return Path(sys.executable)


def versions(peer: Peer, python: Path) -> Mapping[str, str]:
    """Return the versions of what the peer is made of; of a checkout, its commit beside them."""
    if peer.checkout is not None:
        return {"commit": commit(peer.checkout) or "unknown", **installed(python, ["aiohttp", "attrs", "msgspec"])}
    return installed(python, pinned(PROGRAMS / f"{peer.name}.txt"))


def pinned(requirements: Path) -> list[str]:
    """Return the names of what a file pins."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")]


def installed(python: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Return the versions that an environment holds."""
    done = subprocess.run([python, "-c", _VERSIONS, *names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def commit(checkout: Path) -> str:
    """Return the commit of a checkout, with ``-dirty`` where it was changed; empty where git does not know."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
