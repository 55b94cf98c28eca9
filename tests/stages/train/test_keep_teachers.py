"""Teachers that a training keeps: models of their own, behind the student by their momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train.train import Train

IMAGES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
}
TEXTS: dict[str, Any] = {
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 12,
    "embed_dim": 8,
}
CLIP = {"use": "clip:Clip", **IMAGES, **TEXTS}


@pytest.mark.parametrize("keep", [False, True])
def test_a_teacher_is_an_artifact(
    squares: Dataset, recipe_of: Callable[..., Train], tmp_path: Path, keep: bool
) -> None:
    base = replace(recipe_of(objectives=["infonce:InfoNce"], steps=2), model=CLIP)
    recipe = replace(base, teachers={"ema": {"momentum": 1.0}}, keep_teachers=keep)
    found = run_gather(recipe, [squares], tmp_path / "out").artifacts
    path = found / "teachers" / "ema"
    assert path.exists() is keep
    if keep:
        start = replace(base, teachers={}, steps=1, lr=1e-12, min_lr=0.0)
        untrained = folder.load(run_gather(start, [squares], tmp_path / "start").artifacts)
        teacher, student = folder.load(path), folder.load(found)
        for (name, p), q in zip(teacher.named_parameters(), untrained.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6), (
                f"{name}: with momentum 1 the teacher stays where it began"
            )
        assert any(
            not torch.equal(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True)
        )
        assert Tokenizer.load(path).tokens == Tokenizer.load(found).tokens
