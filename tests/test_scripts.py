from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("audit", "install", "serve", "test", "lint", "bench", "prove", "settings-table")


def load_installing() -> ModuleType:
    """``scripts`` is no package: its files are programs."""
    spec = importlib.util.spec_from_file_location("installing", ROOT / "scripts" / "installing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installing = load_installing()


def bash(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_explains_itself_from_anywhere(script: str, tmp_path: Path) -> None:
    done = bash(str(ROOT / "scripts" / script), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: scripts/{script}")
    assert done.stderr == ""


def test_a_wrong_argument_is_refused(tmp_path: Path) -> None:
    assert bash(str(ROOT / "scripts" / "lint"), "--fixx", cwd=tmp_path).returncode == 2
    done = bash(str(ROOT / "scripts" / "install"), "--fixx", cwd=tmp_path)
    assert done.returncode == 2
    assert "unrecognized arguments: --fixx" in done.stderr


def test_install_says_which_python_it_wants(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install", tmp_path / "scripts")
    (tmp_path / "setup.cfg").write_text("[options]\npython_requires = >=3.98,<3.99\n", encoding="utf-8")
    done = bash(str(tmp_path / "scripts" / "install"), cwd=tmp_path, PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr.startswith("scripts/install: no Python >=3.98,<3.99 found; install one, or name it: PYTHON=")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of ``scripts/serve`` whose install and Python only say what they were asked for."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "serve", tmp_path / "scripts")
    say = '#!/bin/sh\necho "$(basename "$0")" "$@" in "$PWD" with "$AISERVICES_PROFILE" of "$AISERVICES_CONFIG"\n'
    for name in ("scripts/install", ".venv/bin/python"):
        (tmp_path / name).write_text(say, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "options", "profile", "config"),
    [
        ("", "", "", "services.toml"),
        ("full", "", "full", "services.toml"),
        ("full --port 8080", "--port 8080 ", "full", "services.toml"),
        ("--port 8080 --profile full", "--port 8080 ", "full", "services.toml"),
        ("--profile=full --config=elsewhere/mine.toml", "", "full", "elsewhere/mine.toml"),
        ("--config mine.toml", "", "", "elsewhere/mine.toml"),
    ],
)
def test_serve_installs_for_the_profile_that_it_serves(
    arguments: str, options: str, profile: str, config: str, project: Path
) -> None:
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    arguments = arguments.replace("elsewhere/", f"{elsewhere}/")
    done = bash(str(project / "scripts" / "serve"), *arguments.split(), cwd=elsewhere)
    of = f"with {profile} of {project / config}"
    assert done.stdout.splitlines() == [
        f"install in {elsewhere} {of}",
        f"python -m aiservices serve {options}in {project} {of}",
    ]


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        ("demo", "espeak,fast,mistral,qwen"),
        ("full", "chatterbox,fast,mistral,qwen,vllm"),
        ("mistral-generate-description", "fast,mistral,vllm"),
        ("chatterbox-text-to-speech", "chatterbox,fast"),
        ("echo", "fast"),
        ("echo --with s3,runpod", "fast,runpod,s3"),
        ("echo --with otel", "fast,otel"),
        ("--only s3,qwen", "qwen,s3"),
    ],
)
def test_a_profile_installs_what_its_services_need(arguments: str, extras: str, tmp_path: Path) -> None:
    done = bash(str(ROOT / "scripts" / "install"), *arguments.split(), "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{extras}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("dmo", "no profile 'dmo'; there are: demo, full, "),
        ("demo --with s4", "no extra 's4' in setup.cfg; there are: qwen, "),
    ],
)
def test_an_unknown_word_lists_the_right_ones(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert installing.main([*arguments.split(), "--dry-run"], {}) == 1
    assert capsys.readouterr().err.startswith(f"install: {complaint}")


@pytest.mark.parametrize(
    ("service", "override", "extras"),
    [
        ({"model": "s3://b/p/"}, {}, {"qwen", "s3"}),
        ({"model": "s3://b/p/"}, {"model": ""}, {"qwen"}),
        ({"options": {"shelf": "s3://b/p/"}}, {}, {"qwen", "s3"}),
        ({"options": {"shelf": "s3://b/p/"}}, {"options": {"shelf": "here"}}, {"qwen"}),
        ({"options": {"shelf": "s3://b/p/"}}, {"handler": "a.mistral:B"}, {"mistral"}),
        ({"options": {"rows": 8}}, {"options": {"shelf": "s3://b/p/"}}, {"qwen", "s3"}),
    ],
)
def test_what_lies_in_a_bucket_needs_the_extra_for_it(
    service: dict[str, object], override: dict[str, object], extras: set[str]
) -> None:
    document = {
        "services": {"x": {"handler": "a.qwen:B", **service}},
        "profiles": {"mine": {"services": {"x": override}}},
    }
    assert installing.extras_of_profile(document, "mine", ["qwen", "mistral", "s3"]) == extras


def test_the_environment_chooses_profile_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[services.x]\nhandler = "a.qwen:B"\nmodel = "s3://b/p/"\n[profiles.mine.services.x]\n', "utf-8")
    environ = {"AISERVICES_PROFILE": "mine", "AISERVICES_CONFIG": str(other)}
    assert installing.main(["--dry-run"], environ) == 0
    assert capsys.readouterr().out == "fast,qwen,s3\n"


def test_all_holds_every_extra_by_its_own_name() -> None:
    extras = installing.read_extras(ROOT)
    assert installing.extras_of_profile({}, "all", list(extras)) == set(extras) - {"demo", "vllm"}
    assert extras["demo"] == ["aiservices[qwen,mistral,espeak]"]


def test_the_demo_extra_is_what_the_demo_profile_needs() -> None:
    """For those who install with pip alone."""
    document = tomllib.loads((ROOT / "services.toml").read_text(encoding="utf-8"))
    needed = installing.extras_of_profile(document, "demo", list(installing.read_extras(ROOT)))
    assert needed == {"qwen", "mistral", "espeak"}


def test_torch_is_the_same_in_every_extra() -> None:
    lines = {line for lines in installing.read_extras(ROOT).values() for line in lines if line.startswith("torch==")}
    assert lines == {"torch==2.13.0"}


def test_the_image_copies_what_is_there_and_what_the_context_holds() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    from_context = [line for line in lines if line.startswith("COPY ") and "--from=" not in line]
    copied = [word for line in from_context for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert any(name == each or name.startswith(f"{each}/") for each in admitted), name


def test_a_changed_setting_leaves_the_layer_that_installs_as_it_is() -> None:
    _, image = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ${BASE}\n")
    before_install, install = image.split("\nRUN PIP_NO_CACHE_DIR=1 ")
    assert "services.toml" not in before_install
    assert 'scripts/install --only "$(cat needs.txt)"\n' in install


def test_the_image_keeps_what_it_sets_beside_the_example_environment() -> None:
    """``--env-file`` takes an empty value for one: each line of a copy is commented out until somebody fills it in."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_the_readme_mounts_the_folders_that_the_image_writes() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (volumes,) = re.findall(r"^VOLUME (.+)$", image, re.MULTILINE)
    mounts = re.findall(r"-v \w+:(\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(mounts) == set(volumes.split())
    assert "AISERVICES_MODEL_DIR=/models " in image


# --- the environment, with a pip that only notes what it was asked for ---

EXTRAS = {"qwen": ["torch==2.13.0", "x"], "speech": ["y"], "test": ["z"], "fast": ["a-faster-loop"]}


class Pip:
    """Stands in for every command: notes it, and creates what ``python -m venv`` would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []
        self.fails: type[BaseException] | None = None

    def __call__(self, command: Sequence[str]) -> None:
        words = [str(word).replace(str(self.root), "ROOT") for word in command]
        if words[1:3] == ["-m", "venv"]:
            (self.root / ".venv").mkdir(exist_ok=True)
            (self.root / ".venv" / "pyvenv.cfg").write_text("version = 3.11", encoding="utf-8")
        elif words[1] == "-c":
            if not (self.root / ".venv" / "pyvenv.cfg").exists():
                raise FileNotFoundError
            return
        self.commands.append(
            " ".join(word for word in words[1:] if not word.startswith(("--quiet", "--no-input", "--dis")))
        )
        if self.fails and "pip" in words:
            error, self.fails = self.fails, None
            raise error(1, command) if error is subprocess.CalledProcessError else error


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    monkeypatch.setattr(installing, "has_gpu", lambda: True)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "speech.no-deps.txt").write_text("speech==1", encoding="utf-8")
    (tmp_path / "setup.cfg").write_text("[options.extras_require]", encoding="utf-8")
    return tmp_path


VENV = "-m venv --clear ROOT/.venv"
TORCH = "-m pip install torch==2.13.0"


def install(root: Path, pip: Pip, *wanted: str) -> bool:
    done: bool = installing.Environment(root, pip).install(set(wanted), EXTRAS)
    return done


def test_what_is_only_good_to_have_may_be_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip(root)

    def without_wheel(command: Sequence[str]) -> None:
        pip(command)
        if "a-faster-loop" in command:
            raise subprocess.CalledProcessError(1, command)

    assert installing.Environment(root, without_wheel).install({"speech", "fast"}, EXTRAS)
    assert pip.commands[-1] == "-m pip install a-faster-loop"
    assert "going on without it" in capsys.readouterr().err
    assert not install(root, pip, "speech", "fast"), "it is not tried again at every start"


def test_torch_comes_first_and_what_contradicts_itself_last(root: Path) -> None:
    pip = Pip(root)
    assert install(root, pip, "qwen", "speech")
    assert pip.commands == [
        VENV,
        TORCH,
        "-m pip install --editable ROOT[qwen,speech]",
        "-m pip install --no-deps --requirement ROOT/requirements/speech.no-deps.txt",
    ]


def test_a_profile_that_needs_nothing_installs_the_package_alone(root: Path) -> None:
    pip = Pip(root)
    assert install(root, pip)
    assert pip.commands == [VENV, "-m pip install --editable ROOT"]


def test_a_second_run_does_nothing(root: Path) -> None:
    pip = Pip(root)
    assert install(root, pip, "qwen", "speech")
    before = list(pip.commands)
    assert not install(root, pip, "qwen", "speech")
    assert not install(root, pip, "speech")
    assert pip.commands == before


def test_another_profile_adds_to_what_is_there(root: Path) -> None:
    pip = Pip(root)
    install(root, pip, "qwen")
    pip.commands.clear()
    assert install(root, pip, "test")
    assert pip.commands == [TORCH, "-m pip install --editable ROOT[qwen,test]"]
    assert not install(root, pip, "qwen")


@pytest.mark.parametrize("file", ["setup.cfg", "pyproject.toml", "requirements/speech.no-deps.txt", ".venv/pyvenv.cfg"])
def test_a_change_of_what_decides_installs_anew(root: Path, file: str) -> None:
    pip = Pip(root)
    install(root, pip, "qwen")
    (root / file).write_text("changed", encoding="utf-8")
    assert install(root, pip, "qwen")
    assert not install(root, pip, "qwen")


def test_a_run_that_was_killed_is_followed_by_a_fresh_start(root: Path) -> None:
    pip = Pip(root)
    pip.fails = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        install(root, pip, "qwen")
    pip.commands.clear()
    assert install(root, pip, "qwen")
    assert pip.commands[0] == VENV


def test_where_pip_gave_up_the_next_run_goes_on(root: Path) -> None:
    pip = Pip(root)
    install(root, pip, "qwen")
    pip.fails = subprocess.CalledProcessError
    with pytest.raises(subprocess.CalledProcessError):
        install(root, pip, "test")
    pip.commands.clear()
    assert install(root, pip, "qwen")
    assert pip.commands == [TORCH, "-m pip install --editable ROOT[qwen]"]


def test_a_venv_that_does_not_run_is_made_anew(root: Path) -> None:
    pip = Pip(root)
    install(root, pip, "qwen")
    (root / ".venv" / "pyvenv.cfg").unlink()
    pip.commands.clear()
    assert install(root, pip, "qwen")
    assert pip.commands[0] == VENV


def test_of_two_runs_at_once_one_installs_and_the_other_waits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pip, inside, done = Pip(root), threading.Event(), []

    def run(command: Sequence[str]) -> None:
        pip(command)
        if not inside.is_set():
            inside.set()
            other.start()
            while "waiting for another" not in capsys.readouterr().err:
                pass

    other = threading.Thread(target=lambda: done.append(install(root, pip, "qwen")))
    installing.Environment(root, run).install({"qwen"}, EXTRAS)
    other.join()
    assert done == [False]
    assert pip.commands == [VENV, TORCH, "-m pip install --editable ROOT[qwen]"]


def test_a_stamp_that_cannot_be_read_counts_as_none(root: Path) -> None:
    pip = Pip(root)
    install(root, pip, "qwen")
    (root / ".venv" / "installed.json").write_text("[", encoding="utf-8")
    assert install(root, pip, "qwen")


def test_a_system_without_the_venv_module_is_told_what_to_do(root: Path) -> None:
    def run(command: Sequence[str]) -> None:
        raise subprocess.CalledProcessError(1, command)

    with pytest.raises(installing.InstallError, match=r"apt install python3\.\d+-venv"):
        installing.Environment(root, run).install({"qwen"}, EXTRAS)


# --- which torch ---


def test_torch_can_come_from_an_index_of_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX_URL", "https://torch.example/cpu")
    pip = Pip(root)
    install(root, pip, "qwen")
    assert f"{TORCH} --extra-index-url https://torch.example/cpu" in pip.commands


@pytest.mark.parametrize(
    ("gpu", "requires", "noted"),
    [
        (False, ["filelock", "nvidia-cudnn-cu13==9; platform_system == 'Linux'"], True),
        (False, ["filelock"], False),
        (True, ["nvidia-cudnn-cu13==9"], False),
    ],
    ids=["CUDA build without a GPU", "CPU build", "CUDA build with a GPU"],
)
def test_a_needlessly_large_torch_is_announced(
    gpu: bool,
    requires: list[str],
    noted: bool,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = json.dumps({"install": [{"metadata": {"requires_dist": requires}}]})

    def answer(command: Any, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=report)

    monkeypatch.setattr(installing, "has_gpu", lambda: gpu)
    monkeypatch.setattr(installing.platform, "system", lambda: "Linux")
    monkeypatch.setattr(installing.subprocess, "run", answer)
    install(root, Pip(root), "qwen")
    assert ("note: pip takes the CUDA build of torch" in capsys.readouterr().err) is noted
