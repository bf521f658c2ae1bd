"""docs/models.md has a row for each released checkpoint, with the size that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch and transformers: pip install 'aiservices[qwen]'")

from aiservices.handlers.torch_runtime import prepare_torch
from tests.handlers.models_page import ROOT, ROWS, SPEECH, billions
from tests.handlers.text.checkpoints.shapes import SHAPES, Shape


def test_every_checkpoint_has_a_row_and_the_readme_leads_there() -> None:
    assert set(ROWS) == {*(shape.repository for shape in SHAPES), *SPEECH}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    models = readme.partition("\n## Models\n")[2].partition("\n## ")[0]
    assert "[docs/models.md](docs/models.md)" in models
    assert "not run on a GPU" in " ".join(models.split())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.repository))
def test_text_models_have_the_size_of_their_row(shape: Shape, tmp_path: Path) -> None:
    prepare_torch()
    import torch
    import transformers

    (tmp_path / "config.json").write_text(json.dumps(shape.config))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = getattr(transformers, shape.config["architectures"][0])(config)
    count = billions(model)
    assert ROWS[shape.repository] == pytest.approx((count, 2 * count), rel=0.02)
