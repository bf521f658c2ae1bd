"""Files of eight bits a weight, in the ways that they come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[mistral]'")
pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")

from aiservices.handlers.mistral import GenerateDescription
from tests.handlers.text.checkpoints.shapes import SHAPES, write
from tests.handlers.text.checkpoints.test_checkpoints import answer, ask

SHAPE = next(shape for shape in SHAPES if shape.repository.endswith("Ministral-3-3B-Instruct-2512"))
PARTS = {"language_model.model.": "model.language_model."} | {
    f"{part}.": f"model.{part}." for part in ("vision_tower", "multi_modal_projector")
}
"""Names of weights in the files of this model and of its classes."""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(SHAPE, tmp_path_factory.mktemp("ministral"))


@pytest.fixture(scope="module")
def expected(released: Path) -> Any:
    return listing(released)


def listing(folder: Path) -> Any:
    """Load a checkpoint and ask it for one listing."""
    handler = GenerateDescription()
    handler.load(folder, "cpu", {"max_new_tokens": 220, "dtype": "float32"})
    try:
        return answer(handler, ask(handler))
    finally:
        handler.unload()


def rewritten(released: Path, to: Path, change: Any) -> Path:
    """Copy a checkpoint with other weights, in one file: ``change`` makes a name and a weight of each."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(released, to, dirs_exist_ok=True))
    weights: dict[str, Any] = {}
    for path in folder.glob("model*.safetensors*"):
        if path.suffix == ".safetensors":
            weights.update(change(name, weight) for name, weight in load_file(path).items())
        path.unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_scales_count(released: Path, expected: Any, tmp_path: Path) -> None:
    def halve(name: str, weight: Any) -> tuple[str, Any]:
        return name, weight / 2 if name.endswith("_scale_inv") else weight

    assert listing(rewritten(released, tmp_path, halve)) != expected


def test_weights_may_bear_the_names_that_their_classes_give(released: Path, expected: Any, tmp_path: Path) -> None:
    def rename(name: str, weight: Any) -> tuple[str, Any]:
        prefix = next(prefix for prefix in PARTS if name.startswith(prefix))
        return PARTS[prefix] + name.removeprefix(prefix), weight

    assert listing(rewritten(released, tmp_path, rename)) == expected


def test_nothing_is_read_of_the_same_weights_in_another_form(released: Path, expected: Any, tmp_path: Path) -> None:
    both = Path(shutil.copytree(released, tmp_path, dirs_exist_ok=True))
    (both / "consolidated.safetensors").write_bytes(b"the same weights, by other names")
    assert listing(both) == expected
