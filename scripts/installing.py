"""Install what a profile needs into ``.venv``; the work behind ``scripts/install``, standard library only.

Which extras a profile needs is read off ``services.toml``: a handler ``aiservices.handlers.qwen:DescribeImage`` needs
the extra ``qwen`` if setup.cfg has one of that name, and a model or another folder on ``s3://`` needs ``s3``.

``.venv/installed.json`` says what is there. It reads "installing" while pip works, so that an interrupted run is
recognised and starts afresh; a file lock keeps two runs apart.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALL = "all"
NOT_IN_ALL = frozenset({"demo", "vllm"})  # names others only; wants a GPU, and has an environment of its own for tests
VLLM_HANDLERS = frozenset({"qwen", "mistral"})
"""Handlers that decode with vLLM on a GPU, unless ``options.engine`` says otherwise."""
OPTIONAL = frozenset({"fast"})
"""Extras that every profile takes where they can be had, and does without elsewhere."""
INSTALLING = "installing"

Run = Callable[[Sequence[str]], None]


class InstallError(Exception):
    """What is wrong and what to do, in one or two lines."""


def read_extras(root: Path) -> dict[str, list[str]]:
    """Return the extras of setup.cfg and the requirements of each."""
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg", encoding="utf-8")
    return {name: text.split("\n")[1:] for name, text in settings["options.extras_require"].items()}


def default_profile(document: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the profile that runs when nobody names one."""
    return environ.get("AISERVICES_PROFILE") or str(document.get("server", {}).get("profile", "demo"))


def extras_of_profile(document: Mapping[str, Any], profile: str, extras: Sequence[str]) -> set[str]:
    """Return the extras that the profile's services need.

    Raises:
        InstallError: there is no such profile.
    """
    if profile == ALL:
        return set(extras) - NOT_IN_ALL
    profiles = document.get("profiles", {})
    if profile not in profiles:
        raise InstallError(f"no profile {profile!r}; there are: {', '.join([*profiles, ALL])}")
    needed = set()
    for name, override in profiles[profile].get("services", {}).items():
        base = document.get("services", {}).get(name, {})
        service = {**base, **override}
        module = str(service.get("handler", "")).partition(":")[0].rpartition(".")[2]
        needed.add(module)
        # Another handler has other options.
        inherited = base.get("options", {}) if service.get("handler") == base.get("handler") else {}
        options = {**inherited, **override.get("options", {})}
        if module in VLLM_HANDLERS and _wants_vllm(str(service.get("device", "auto")), options):
            needed.add("vllm")
        folders = [service.get("model", ""), *options.values()]
        if any(str(folder).startswith("s3://") for folder in folders):
            needed.add("s3")
    return needed & set(extras)


def _wants_vllm(device: str, options: Mapping[str, Any]) -> bool:
    engine = options.get("engine", "auto")
    return engine == "vllm" or (engine == "auto" and device.startswith("cuda"))


def fingerprint(root: Path) -> str:
    """Return a digest of everything that decides what pip would install, and where."""
    digest = hashlib.sha256(str(root).encode())
    files = [root / "setup.cfg", root / "pyproject.toml", *sorted((root / "requirements").glob("*.txt"))]
    for path in [*files, root / ".venv" / "pyvenv.cfg"]:
        digest.update(path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()


class Environment:
    """The project's ``.venv`` and what is known to be in it.

    Args:
        root: the project's folder.
        run: runs a command and raises CalledProcessError if it fails.
    """

    def __init__(self, root: Path, run: Run) -> None:
        self.root = root
        self.path = root / ".venv"
        self.python = self.path / "bin" / "python"
        self._stamp = self.path / "installed.json"
        self._run = run

    def installed(self) -> set[str] | None:
        """Return the extras that are there, or None if nothing is known to be."""
        stamp = self._read_stamp()
        return set(stamp["extras"]) if stamp and stamp.get("key") == fingerprint(self.root) else None

    def install(self, wanted: set[str], extras: Mapping[str, Sequence[str]]) -> bool:
        """Make sure that these extras are there; return whether anything had to be installed."""
        if self._has(wanted):
            return False
        with self._lock():
            if self._has(wanted):  # whoever held the lock has done it
                return False
            before = self._read_stamp() or {}
            self._make(clear=before.get("state") == INSTALLING)
            # What a profile once needed stays: whoever goes back to it must not wait again.
            everything = (wanted | set(before.get("extras", ()))) & set(extras)
            self._write_stamp({"state": INSTALLING})
            try:
                self._install(sorted(everything), extras)
            except subprocess.CalledProcessError:
                # pip gave up by itself and left the environment whole; only a killed run has to start afresh.
                self._write_stamp({**before, "key": ""})
                raise
            self._write_stamp({"key": fingerprint(self.root), "extras": sorted(everything)})
        return True

    def _has(self, wanted: set[str]) -> bool:
        installed = self.installed()
        return installed is not None and wanted <= installed

    def _make(self, *, clear: bool) -> None:
        if not clear and self._works():
            return
        say(f"creating {self.path}" + (" afresh: the last install was interrupted" if clear else ""))
        base = getattr(sys, "_base_executable", sys.executable)
        try:
            self._run([base, "-m", "venv", "--clear", str(self.path)])
        except subprocess.CalledProcessError:
            shutil.rmtree(self.path, ignore_errors=True)
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise InstallError(
                f"{base} cannot create a virtual environment; on Debian and Ubuntu: apt install python{version}-venv"
            ) from None

    def _works(self) -> bool:
        try:
            self._run([str(self.python), "-c", "import pip"])
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _install(self, names: Sequence[str], extras: Mapping[str, Sequence[str]]) -> None:
        torch = next((line for name in names for line in extras[name] if line.startswith("torch==")), None)
        if torch:
            # First and alone: what is asked for later must find it there and not choose another build.
            self._pip(torch, *self._torch_source(torch))
        needed = [name for name in names if name not in OPTIONAL]
        brackets = f"[{','.join(needed)}]" if needed else ""
        say(f"installing aiservices{brackets}")
        self._pip("--editable", f"{self.root}{brackets}")
        for path in (self.root / "requirements" / f"{name}.no-deps.txt" for name in names):
            if path.is_file():
                say(f"installing what {path.name} lists, without its requirements")
                self._pip("--no-deps", "--requirement", str(path))
        for name in sorted(OPTIONAL & set(names)):
            self._try(name, extras[name])

    def _try(self, name: str, requirements: Sequence[str]) -> None:
        """Install what is only good to have."""
        try:
            self._pip(*requirements)
        except subprocess.CalledProcessError:
            say(f"note: the extra {name!r} ({', '.join(requirements)}) cannot be installed here; going on without it")

    def _torch_source(self, torch: str) -> Sequence[str]:
        """Choose where torch comes from, and say so where that is likely to surprise."""
        url = os.environ.get("TORCH_INDEX_URL")
        say(f"installing {torch}" + (" from TORCH_INDEX_URL" if url else ""))
        if url:
            return ["--extra-index-url", url]
        if platform.system() == "Linux" and not has_gpu() and not self._resolves_to_cpu_build(torch):
            say(
                "note: pip takes the CUDA build of torch here, some 2.6 GB to download where a CPU build has 0.2, and"
                " this machine shows no GPU. It works all the same. For the small one, stop this, delete .venv and set"
                " TORCH_INDEX_URL to the index of CPU builds that PyTorch's install page names."
            )
        return []

    def _resolves_to_cpu_build(self, torch: str) -> bool:
        """Ask pip what it would take; unclear counts as yes, since this only decides on a note."""
        question = ("install", "--dry-run", "--no-deps", "--quiet", "--report", "-", torch)
        found = subprocess.run([self.python, "-m", "pip", *question], capture_output=True, text=True, check=False)
        try:
            chosen = json.loads(found.stdout)["install"]
        except (ValueError, KeyError):
            return True
        needs = [line for package in chosen for line in package["metadata"].get("requires_dist", [])]
        return not any(line.startswith(("nvidia-", "cuda-", "triton")) for line in needs)

    def _pip(self, *arguments: str) -> None:
        quiet = () if sys.stdout.isatty() else ("--quiet",)
        common = ("--disable-pip-version-check", "--no-input", *quiet)
        self._run([str(self.python), "-m", "pip", "install", *common, *arguments])

    def _read_stamp(self) -> dict[str, Any] | None:
        try:
            stamp = json.loads(self._stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return stamp if isinstance(stamp, dict) else None

    def _write_stamp(self, stamp: Mapping[str, Any]) -> None:
        new = self._stamp.with_suffix(".new")
        new.write_text(json.dumps(stamp), encoding="utf-8")
        new.replace(self._stamp)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other runs out; setup.cfg is what is locked, since it is there before ``.venv`` is."""
        with (self.root / "setup.cfg").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another install of this folder to end")
                fcntl.flock(file, fcntl.LOCK_EX)
            os.set_inheritable(file.fileno(), True)  # a pip that outlives us, killed, keeps the others out
            yield


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def say(text: str) -> None:
    """Tell the person at the terminal what happens; standard error, so that output can be piped."""
    print(f"install: {text}", file=sys.stderr, flush=True)


def run_command(command: Sequence[str]) -> None:
    """Run one command to its end, its output going where ours goes."""
    subprocess.run(command, check=True, close_fds=False)  # the lock is inherited


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ``scripts/install`` has answered ``--help`` already."""
    parser = argparse.ArgumentParser(prog="scripts/install", add_help=False)
    parser.add_argument("profile", nargs="?")
    parser.add_argument("--with", dest="more", default="", metavar="EXTRA[,EXTRA]")
    parser.add_argument("--only", metavar="EXTRA[,EXTRA]")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Install what was asked for; return the exit code."""
    options = parse(arguments)
    try:
        extras = read_extras(ROOT)
        wanted = wanted_extras(options, environ, extras)
        if options.dry_run:
            print(",".join(sorted(wanted)))
            return 0
        Environment(ROOT, run_command).install(wanted, extras)
    except InstallError as error:
        say(str(error))
        return 1
    except subprocess.CalledProcessError as error:
        say(f"failed with exit code {error.returncode}: {' '.join(map(str, error.cmd))}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def wanted_extras(options: argparse.Namespace, environ: Mapping[str, str], extras: Mapping[str, Any]) -> set[str]:
    """Return the extras of the profile and those asked for by name."""
    named = {name.strip() for name in (options.only or options.more).split(",") if name.strip()}
    if unknown := named - set(extras):
        raise InstallError(f"no extra {sorted(unknown)[0]!r} in setup.cfg; there are: {', '.join(extras)}")
    if options.only is not None:
        return named
    path = Path(environ.get("AISERVICES_CONFIG") or ROOT / "services.toml")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InstallError(f"{path}: {error}") from None
    profile = options.profile or default_profile(document, environ)
    return named | extras_of_profile(document, profile, list(extras)) | (OPTIONAL & set(extras))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
