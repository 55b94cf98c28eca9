"""SigLIP, CoCa, ALBEF and BLIP-2 in training: micro-batches equal one batch, teachers are made where losses want them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
TOWERS: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 16,
}
COCA: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "heads": 2,
    "vision_layers": 1,
    "unimodal_layers": 1,
    "multimodal_layers": 1,
    "max_text_length": 16,
    "queries": 3,
}
FORMER: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "queries": 3, "embed_dim": 8, "dropout": 0.0}
FORMER |= {"image_size": 16, "patch_size": 8, "vision_width": 16, "vision_layers": 1, "vision_heads": 2}
FORMER |= {"vision_mlp": 32, "max_text_length": 16}
MASKED = {"mlm": [{"use": "mask_text:MaskText", "rate": 0.3}]}
ITC = {"use": "itc:Itc", "queue_size": 40, "alpha_ramp_epochs": 0, "share": False, "kl": True}
DISTILLED = {"use": "masked_lm:DistilledMaskedLm", "view": "mlm", "alpha_ramp_epochs": 0}
SYSTEMS: dict[str, dict[str, Any]] = {
    "siglip": {"model": {"use": "siglip:Siglip", **TOWERS}, "objectives": ["sigmoid:Sigmoid"]},
    "coca": {
        "model": {"use": "coca:Coca", **COCA},
        "objectives": [{"use": "infonce:InfoNce", "weight": 2.0}, {"use": "lm:Lm", "weight": 2.0}],
    },
    "blip_2": {
        "model": {"use": "blip_2:Blip2", **FORMER},
        "objectives": ["query_itc:QueryItc", "lm:Lm"],  # matching, as ALBEF's
    },
    "albef": {
        "model": {"use": "albef:Albef", "fusion_layers": 1, "embed_dim": 8, "dropout": 0.0, **TOWERS},
        "objectives": [ITC, DISTILLED],  # matching draws its negatives among the rows of a micro-batch
        "views": MASKED,
    },
}


def recipe_for(recipe_of: Make, name: str, **more: Any) -> Train:
    base = recipe_of()
    settings = {"tokenizer": base.tokenizer, "batch_size": 24, "steps": 8, "loader_threads": 1}
    return Train(**{**settings, "streams": {"text": {"max_length": 12}}, **SYSTEMS[name], **more})


def third_step(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of the third step, whose queue is full; weights are moved once, away from the teacher's."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.net.model.parameters():
            if p.ndim > 1:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))
    with run.loader.batches(0) as batches:
        for _ in range(3):
            run.optimiser.zero_grad()
            values = accumulate(run, list(islice(batches, run.recipe.accumulate)))
    return values, {n: p.grad for n, p in run.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SYSTEMS)
def test_micro_batches_are_one_batch(squares: Dataset, recipe_of: Make, name: str) -> None:
    """Values to 1e-5, each gradient to 1e-5 of the whole gradient's norm."""
    runs = {k: prepare(recipe_for(recipe_of, name, accumulate=k), [squares]) for k in (1, 3)}
    (values, grads), (others, found) = third_step(runs[1]), third_step(runs[3])
    size = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for loss in runs[1].net.losses:
        assert float(others[loss]) == pytest.approx(float(values[loss]), rel=1e-5)
    assert found.keys() == grads.keys()
    for n, grad in grads.items():
        assert (found[n] - grad).norm() <= 1e-5 * size, n


def test_distilled_words_alone_make_their_teacher(squares: Dataset, recipe_of: Make) -> None:
    distilled = {**DISTILLED, "momentum": 0.9, "teacher_dropout": False}
    run = prepare(recipe_for(recipe_of, "albef", objectives=[distilled]), [squares])
    ema = run.net.teachers["ema"]
    assert (ema.momentum, ema.dropout) == (0.9, False)
    with run.loader.batches(0) as batches:
        assert accumulate(run, [next(batches)])["mlm"].isfinite()
