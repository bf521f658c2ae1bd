from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tools.demo_weights import describe, listing
from tools.demo_weights.describe import start
from tools.demo_weights.pictures import PictureSet, load_or_draw
from tools.demo_weights.vision import merged_tokens, normalised

pytestmark = pytest.mark.demo
PLAN = describe.Plan(pictures=40, batch=4, tower_epochs=0.1, joint_epochs=0.2, answer_steps=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    return load_or_draw(tmp_path_factory.mktemp("pictures"), PLAN.pictures, PLAN.seed, workers=1)


def test_drawn_pictures_are_kept_and_read_back(tmp_path: Path) -> None:
    first = load_or_draw(tmp_path, 6, 1, workers=1)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    second = load_or_draw(tmp_path, 6, 1, workers=1)

    assert len(first) == len(second) == 6
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert all(torch.equal(first.patches[grid], second.patches[grid]) for grid in first.patches)


def test_the_batched_tower_gives_what_the_models_own_forward_gives(pictures: PictureSet) -> None:
    _, model, _ = start(PLAN)
    tower = model.model.visual

    for grid, patches in pictures.patches.items():
        two_frames = normalised(patches).view(-1, 3, 1, 64).expand(-1, -1, 2, -1).reshape(-1, 384)
        with torch.inference_mode():
            expected = tower(two_frames, grid_thw=torch.tensor([[1, *grid]] * len(patches))).pooler_output
            found = merged_tokens(tower, patches, grid)
        torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_step_of_the_picture_models_training_runs(pictures: PictureSet, tmp_path: Path) -> None:
    describe.train_tower(pictures, PLAN, tmp_path / "tower.pt")
    describe.train_jointly(pictures, PLAN, tmp_path / "tower.pt", tmp_path / "model")
    describe.train_answers(pictures, PLAN, tmp_path / "model")

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_listing_models_training_runs(tmp_path: Path) -> None:
    listing.train(listing.Plan(steps=1, batch=2), tmp_path)

    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.sliding_window is None
