from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiservices.errors import ServiceError
from aiservices.settings import Config, ServerConfig
from aiservices.storage import ModelStore, hub

HUB_DOWN = "the model hub cannot be reached and {folder} does not hold all of it; run 'python -m aiservices pull'"


def test_a_hub_uri_has_a_revision_and_may_select_files() -> None:
    assert hub.parse("hf://org/name") == hub.HubModel("hf://org/name", "org/name", "main", hub.FILES)
    chosen = hub.parse("hf://org/name@v1.0?files=a.safetensors,conds.pt")
    assert (chosen.revision, chosen.files, chosen.not_files) == ("v1.0", ("a.safetensors", "conds.pt"), ())
    anything = hub.parse("hf://org/name", hub.ALL)
    assert (anything.files, anything.not_files) == (("*",), ())
    assert hub.parse("hf://org/name?files=*.wav", hub.ALL).files == ("*.wav",)


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"the same once more",
    "pytorch_model.bin": b"and again",
    "sub/tokenizer.json": b"[]",
}
COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as ``snapshot_download`` asks for."""

    asked: list[str]
    broken_file = ""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, send_body: bool) -> None:
        self.asked.append(self.path)
        status, body, headers = self._route(self.path.partition("?")[0])
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def _route(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path.startswith("/api/models/org/name/revision/"):
            if not path.endswith(("/main", COMMIT)):
                return 404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"}
            siblings = [{"rfilename": name} for name in FILES]
            return self._json({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings})
        if path == f"/api/models/org/name/tree/{COMMIT}":
            blob = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            return self._json(blob)
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if name in FILES and name != self.broken_file:
            return 200, FILES[name], {"ETag": f'"{hashlib.sha1(FILES[name]).hexdigest()}"'}
        if path.startswith("/api/models/locked/"):
            return 403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "locked"}
        if path.startswith("/api/models/busy/"):
            return 400, b"", {}
        return 404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"}

    @staticmethod
    def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def hub_server() -> Iterator[str]:
    pytest.importorskip("huggingface_hub", reason="needs huggingface-hub: scripts/install demo")
    Hub.asked = []
    Hub.broken_file = ""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Pull:
    """Asks for models in a process of its own, since the hub's client reads the environment when it is imported."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.endpoint = endpoint

    def __call__(self, *uris: str, offline: bool = False, method: str = "resolve", option: str = "") -> list[str]:
        program = (
            "import asyncio, sys\nfrom pathlib import Path\nfrom aiservices.settings import Config, ServerConfig\n"
            "from aiservices.errors import ServiceError\nfrom aiservices.storage import ModelStore\n"
            "store = ModelStore(Config(server=ServerConfig(model_dir=Path(sys.argv[1]))))\n"
            "for uri in sys.argv[4:]:\n"
            "    try:\n        print(asyncio.run(getattr(store, sys.argv[2])(uri, option=sys.argv[3])))\n"
            "    except ServiceError as error:\n        print(error)\n"
        )
        environ = {**os.environ, "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": str(int(offline))}
        command = [sys.executable, "-c", program, str(self.folder), method, option, *uris]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(("/", "model ", "options.", "in ", "to "))]


@pytest.fixture
def pull(hub_server: str, tmp_path: Path) -> Pull:
    return Pull(tmp_path, hub_server)


def test_a_snapshot_holds_the_wanted_files_and_is_not_requested_twice(pull: Pull, tmp_path: Path) -> None:
    pinned = f"hf://org/name@{COMMIT}"
    assert pull("hf://org/name", method="describe") == ["to be downloaded: 3 files, 0.0 GiB"]
    (found,) = pull("hf://org/name@main")
    files = {str(path.relative_to(found)): path.read_bytes() for path in Path(found).rglob("*") if path.is_file()}
    assert files == {name: FILES[name] for name in ("config.json", "model.safetensors", "sub/tokenizer.json")}
    assert Path(found).is_relative_to(tmp_path / "hub")

    Hub.asked.clear()
    assert pull(pinned) == [found]
    assert not [path for path in Hub.asked if "org/name" in path]
    assert pull("hf://org/name", method="describe") == [f"in {found}"]
    assert pull("hf://org/name", pinned, offline=True) == [found, found]


def test_for_an_option_every_file_is_downloaded(pull: Pull) -> None:
    assert pull("hf://org/name", method="describe", option="shelf") == ["to be downloaded: 5 files, 0.0 GiB"]
    (found,) = pull("hf://org/name", option="shelf")
    assert {str(path.relative_to(found)) for path in Path(found).rglob("*") if path.is_file()} == set(FILES)
    (message,) = pull("hf://org/name@v9", option="shelf")
    assert message == "options.shelf: 'hf://org/name@v9': it has no revision 'v9'"


def test_an_incomplete_snapshot_is_not_used(pull: Pull, tmp_path: Path) -> None:
    Hub.broken_file = "model.safetensors"
    pull("hf://org/name")
    (message,) = pull("hf://org/name", offline=True)
    assert message.startswith(f"model 'hf://org/name': {HUB_DOWN.format(folder=tmp_path / 'hub')}")


def test_each_refusal_of_a_hub_says_what_to_do(pull: Pull, tmp_path: Path) -> None:
    down = HUB_DOWN.format(folder=tmp_path / "hub")
    wanted = {
        "hf://org/name@v9": "it has no revision 'v9'",
        "hf://org/none": "the hub has no such repository, or it is private and HF_TOKEN holds no token",
        "hf://locked/name": "its licence has to be accepted on its page first; then set HF_TOKEN",
        "hf://busy/name": down,
    }
    found = pull(*wanted)
    for message, (uri, reason) in zip(found, wanted.items(), strict=True):
        assert message.startswith(f"model '{uri}': {reason}")


@pytest.mark.parametrize("method", ["resolve", "describe"])
def test_without_a_hub_the_error_says_what_to_do_instead(method: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs huggingface-hub: scripts/install demo")
    (message,) = Pull(tmp_path, "http://127.0.0.1:9")("hf://org/name", method=method)
    assert message.startswith(f"model 'hf://org/name': {HUB_DOWN.format(folder=tmp_path / 'hub')}")


async def test_without_the_hubs_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ServiceError, match=r"the package huggingface-hub is not installed \(scripts/install\)"):
        await ModelStore(Config(server=ServerConfig(model_dir=tmp_path))).resolve("hf://org/name")
