from __future__ import annotations

from pathlib import Path

import pytest

from aiservices.errors import ServiceError
from aiservices.settings import Config, ServerConfig
from aiservices.storage import ModelStore


def make_store(folder: Path) -> ModelStore:
    return ModelStore(Config(server=ServerConfig(model_dir=folder)))


async def test_a_service_without_a_model_gets_none(tmp_path: Path) -> None:
    assert await make_store(tmp_path).resolve("") is None


async def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert await store.resolve(str(tmp_path)) == tmp_path
    assert await store.describe(str(tmp_path)) == f"in {tmp_path}"


async def test_the_demo_models_are_found_in_the_package(tmp_path: Path) -> None:
    folder = await make_store(tmp_path).resolve("package://aiservices/demo/mistral")
    assert folder is not None
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere/at/all", "model 'nowhere/at/all': no such folder (/"),
        ("package://aiservices/demo/nothing", "model 'package://aiservices/demo/nothing': no such folder"),
        (
            "package://no_such_package/x",
            "model 'package://no_such_package/x': no package 'no_such_package' is installed",
        ),
        ("hff://a/b", "model 'hff://a/b': unknown scheme 'hff://'; did you mean 'hf://'?, or a folder"),
        ("hf://a b/c", "model 'hf://a b/c': expected hf://organisation/name@revision"),
        ("hf://a/b?flies=x", "model 'hf://a/b?flies=x': expected hf://organisation/name@revision, and ?files=a,b"),
    ],
)
async def test_an_invalid_uri_says_what_is_wrong(uri: str, message: str, tmp_path: Path) -> None:
    for ask in (make_store(tmp_path).resolve, make_store(tmp_path).describe):
        with pytest.raises(ServiceError) as caught:
            await ask(uri)
        assert str(caught.value).startswith(message)
