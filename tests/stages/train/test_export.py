from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils.logging import is_progress_bar_enabled

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.export.transformers import ExportHF
from vlpipe.stages.train.train import Train


@pytest.mark.parametrize("kind", ["captioner", "retrieval"])
def test_a_trained_model_opens_in_transformers(
    kind: str,
    squares: Dataset,
    recipe_of: Callable[..., Train],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = run_gather(recipe_of(steps=1), [squares], tmp_path / "trained")
    capsys.readouterr()
    stage = ExportHF(model=Weights(path=str(trained.artifacts)), kind=kind)  # type: ignore[arg-type]
    got = run_gather(stage, [], tmp_path / "exported")
    assert capsys.readouterr() == ("", "")  # no progress bar of transformers
    assert is_progress_bar_enabled()  # elsewhere they are as they were
    assert "model.safetensors" in got.table["file"].to_pylist()
    theirs = _theirs(kind).from_pretrained(got.artifacts, local_files_only=True).eval()
    ours = Blip.load(trained.artifacts).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = theirs.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(tokens, ours.encode_image(pixels), rtol=1e-4, atol=1e-5)


def _theirs(kind: str) -> type:
    import transformers

    names = {"captioner": "BlipForConditionalGeneration", "retrieval": "BlipForImageTextRetrieval"}
    found: type = getattr(transformers, names[kind])
    return found
