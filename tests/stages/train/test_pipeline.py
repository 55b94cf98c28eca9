"""Training with a pipeline of two and four workers over gloo against one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.train.test_mesh import in_ranks, same
from tests.stages.train.test_mesh import trained as trained
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.models.parallel.pipeline import one_length
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
SMALL: dict[str, Any] = {"width": 16, "heads": 2}
TEXT: dict[str, Any] = {**SMALL, "max_text_length": 16}
MODELS: dict[str, dict[str, Any]] = {
    # tied words, whose gradient comes from the first and the last worker
    "gpt": {
        "model": {"use": "gpt:Gpt", "layers": 4, "dropout": 0.0, **TEXT},
        "objectives": ["lm:Lm"],
        "clip_norm": 0.1,
    },
    "experts": {
        "model": {
            "use": "expert_lm:ExpertLm",
            "layers": 4,
            "experts": 4,
            "router": {"kind": "switch", "jitter": 0.0},
            "capacity_factor": [4.0, 4.0],
            **TEXT,
        },
        "objectives": ["lm:Lm"],
    },
    "bert": {
        "model": {"use": "bert:Bert", "layers": 4, "dropout": 0.0, **TEXT},
        "objectives": [{"use": "masked_lm:MaskedLm", "view": "masked"}],
        "views": {"masked": ["mask_text:MaskText"]},
        "recompute": True,
        "freeze": ["encoder.embed.*", "encoder.blocks.0.*", "encoder.blocks.1.*"],
    },
    # a chain of two lists of other widths: the first worker has three layers of the encoder, the last one two of the decoder
    "mae": {
        "model": {
            "use": "mae:Mae",
            "image_size": 16,
            "patch_size": 4,
            "layers": 4,
            "decoder_layers": 2,
            "decoder_width": 8,
            "decoder_heads": 2,
            **SMALL,
        },
        "objectives": [{"use": "pixel_mse:PixelMse", "view": "hidden"}],
        "streams": {},
        "views": {"hidden": [{"use": "mask_patches:MaskPatches", "patch": 4}]},
    },
}


def recipe(make: Make, kind: str, **more: Any) -> Train:
    # AdamW makes steps of the noise where a gradient is 0
    changes: dict[str, Any] = {
        "teachers": {},
        "optimiser": "sgd",
        "lr": 0.1,
        "batch_size": 48,
        "accumulate": 4,
    }
    return replace(make(), **{**changes, **MODELS[kind], **more})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num", [2, 4])
def test_a_pipeline_is_one_process(
    num: int, tmp_path: Path, squares: Dataset, recipe_of: Make, trained: Callable[..., dict[str, Any]]
) -> None:
    """Losses of three steps, gradients of the third and weights: two parts; four parts; two replicas of two parts."""
    meshes = [Mesh(pipeline=num)] + ([Mesh(pipeline=2, data=2)] if num == 4 else [])
    jobs = {
        f"{kind} {mesh.replicas(num)}": (recipe(recipe_of, kind, num_workers=num, mesh=mesh), squares)
        for kind in MODELS
        for mesh in meshes
    }
    ones = {kind: trained(recipe(recipe_of, kind), squares) for kind in MODELS}
    found = in_ranks(tmp_path, num, jobs)
    assert len(found) == len(jobs)
    for name, one in found.items():
        whole = ones[name.split(" ")[0]]
        for losses in (*one["losses"], *whole["losses"]):
            losses.pop("mlm_accuracy", None)  # of several micro-batches a mean of means
        same(one, whole)


def test_a_plan_takes_chains_and_refuses_the_rest(recipe_of: Make) -> None:
    def problems(kind: str, **more: Any) -> list[str]:
        return recipe(recipe_of, kind, **{"num_workers": 2, "mesh": Mesh(pipeline=2), **more}).preflight()

    assert [problems(kind) for kind in MODELS] == [[]] * len(MODELS)
    refused: Mapping[str, tuple[str, dict[str, Any]]] = {
        "num_workers = 2": ("gpt", {"mesh": Mesh(pipeline=2, data=2)}),
        "does not go with shard, whose workers gather each layer": (
            "gpt",
            {"mesh": Mesh(pipeline=2, shard=2), "num_workers": 4},
        ),
        "does not go with tensor": ("gpt", {"mesh": Mesh(pipeline=2, tensor=2), "num_workers": 4}),
        "does not go with expert": ("experts", {"mesh": Mesh(pipeline=2, expert=2), "num_workers": 4}),
        "set accumulate to at least 2, got 1": ("gpt", {"accumulate": 1}),
        "compile: true does not go with `pipeline`": ("gpt", {"compile": True}),
        "set bf16 or fp32": ("gpt", {"precision": "fp16"}),
        "balance_tokens makes micro-batches of other sizes": (
            "gpt",
            {"balance_tokens": True, "group_by_length": True},
        ),
        "6 workers, but the model has 4 layer(s)": (
            "gpt",
            {"mesh": Mesh(pipeline=6), "num_workers": 6, "accumulate": 8},
        ),
        "teacher ema follows the whole model": ("gpt", {"teachers": {"ema": {"momentum": 0.9}}}),
        "ExpertBalance compares rows or layers": (
            "experts",
            {"objectives": ["lm:Lm", "experts.balance:ExpertBalance"]},
        ),
        "look at views '', 'masked', each a pass of its own": (
            "bert",
            {"objectives": ["match:Match", {"use": "masked_lm:MaskedLm", "view": "masked"}]},
        ),
    }
    for message, (kind, more) in refused.items():
        (problem,) = problems(kind, **more)
        assert problem.startswith("mesh: "), problem
        assert message in problem
    (problem,) = recipe_of(num_workers=2, mesh=Mesh(pipeline=2), accumulate=2).preflight()
    assert "Blip is no single chain of layers" in problem


def test_micro_batches_get_one_length() -> None:
    """Tokens, masks and targets get places that no loss counts; pictures and streams of that length stay."""

    def batch(length: int) -> Batch:
        ids, seen = torch.arange(2 * length).view(2, length), torch.ones(2, length, dtype=torch.bool)
        target = {"ids": ids.clone(), "match": torch.tensor([0, 1]), "masked": seen}
        text = Stream(ids, seen, {"segment": ids * 0}, target, {"ids": torch.tensor([1])})
        return Batch(
            {"text": text, "image": Stream(torch.zeros(2, 3, 4, 4))}, torch.arange(2), {"m": {"text": text}}
        )

    short, long = one_length([batch(3), batch(5)])
    assert long.stream("text").places
    text = short.view("m").stream("text")
    assert text is short.stream("text")
    assert text.data.tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]
    assert text.mask is not None
    assert text.mask.tolist() == text.target["masked"].tolist() == [[True] * 3 + [False] * 2] * 2
    assert text.target["ids"][:, 3:].tolist() == [[IGNORE] * 2] * 2
    assert text.target["match"].tolist() == [0, 1]
    assert text.extra["segment"].shape == (2, 5)
    assert not text.places
    assert short.stream("image").data.shape == (2, 3, 4, 4)
