"""Deterministic kernels, or an error that says how to do without; compiled steps train as others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train.runtime import reproducible
from vlpipe.stages.train.train import Train

CLIP = {
    "use": "clip:Clip",
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 12,
    "embed_dim": 8,
}


def test_an_operation_that_is_not_deterministic_is_an_error_that_says_what_to_do() -> None:
    said = "deterministic: true, but an operation has no deterministic implementation: .*; set deterministic: false"
    with pytest.raises(VlpipeError, match=said), reproducible():
        torch.zeros(4).put_(
            torch.tensor([0, 0]), torch.ones(2)
        )  # torch has no deterministic one without accumulate
    with reproducible(False):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), reproducible():
        raise RuntimeError("out of memory")
    assert not torch.are_deterministic_algorithms_enabled()


def test_both_are_in_the_key_only_if_they_are_set(recipe_of: Callable[..., Train]) -> None:
    assert {"deterministic", "compile"} <= Train.ADDED
    assert (recipe_of().deterministic, recipe_of().compile) == (True, False)


@pytest.mark.slow
def test_a_compiled_step_trains_as_another(
    recipe_of: Callable[..., Train], squares: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as torch.compile does it, without generating code, which takes a minute."""
    compiled = []

    def compile_(module: Any) -> Any:
        compiled.append(module)
        return partial(torch._dynamo.optimize, "aot_eager")()(module)

    monkeypatch.setattr(torch, "compile", compile_)
    recipe = replace(recipe_of(teachers={}), model=CLIP, objectives=["infonce:InfoNce"], steps=3)
    plain = run_gather(recipe, [squares], tmp_path / "plain").table["value"].to_pylist()
    found = (
        run_gather(replace(recipe, compile=True), [squares], tmp_path / "compiled").table["value"].to_pylist()
    )
    assert len(compiled) == 1
    assert found == pytest.approx(plain, rel=1e-4)
