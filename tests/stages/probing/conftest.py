"""The folder of a model whose feature of an image is its mean colour."""

from __future__ import annotations

from pathlib import Path

import pytest
from probing_toys import MeanColour

from vlpipe.models import folder
from vlpipe.pipeline.files import Weights


@pytest.fixture
def colour_model(tmp_path: Path) -> Weights:
    folder.save(MeanColour(), tmp_path / "mean_colour")
    return Weights(path=str(tmp_path / "mean_colour"))
