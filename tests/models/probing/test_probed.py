"""A classifier over frozen or partly trained encoders: its scores, what moves in a step, and that it is saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.optim.frozen import evaluate_frozen, freeze
from vlpipe.models.probing.probed import Probed

MAE: dict[str, Any] = {
    "use": "mae:Mae",
    "image_size": 8,
    "patch_size": 4,
    "width": 8,
    "layers": 3,
    "heads": 2,
}
DECODER: dict[str, Any] = {"decoder_width": 8, "decoder_layers": 1, "decoder_heads": 2}
CLIP: dict[str, Any] = {
    "use": "clip:Clip",
    "vocab_size": 9,
    "end": 1,
    "image_size": 8,
    "patch_size": 4,
    "vision_width": 8,
}
TOWERS: dict[str, Any] = {
    "vision_layers": 3,
    "vision_heads": 2,
    "text_width": 8,
    "text_layers": 1,
    "text_heads": 2,
}
ENCODERS = [{**MAE, **DECODER}, {**CLIP, **TOWERS, "embed_dim": 6}]


def made(encoder: dict[str, Any], **more: Any) -> Probed:
    torch.manual_seed(0)
    return Probed(encoder=encoder, num_classes=3, **more)


def batch(num: int = 6) -> Batch:
    pixels = torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch({"image": Stream(pixels), "label": Stream(torch.arange(num) % 3)}, same=torch.arange(num))


def scores(model: Probed) -> Tensor:
    found: Tensor = Outputs(model, batch()).logits
    return found


@pytest.mark.parametrize("encoder", ENCODERS, ids=["mae", "clip"])
def test_scores_are_of_the_encoder_s_embedding(encoder: dict[str, Any]) -> None:
    for batch_norm in (True, False):
        model = made(encoder, batch_norm=batch_norm).train()
        feats = Outputs(model.encoder, batch()).image_feat
        assert torch.allclose(feats.norm(dim=1), torch.ones(6), atol=1e-5)
        x = (feats - feats.mean(0)) / (feats.var(0, unbiased=False) + 1e-6).sqrt() if batch_norm else feats
        wanted = (x @ model.head.weight.T + model.head.bias).detach()
        assert torch.allclose(scores(model).detach(), wanted, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS, ids=["mae", "clip"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_step_moves_the_last_blocks_alone(encoder: dict[str, Any], blocks: int) -> None:
    model = made(encoder)
    last = [f"encoder.vision.blocks.{k}.*" for k in range(3 - blocks, 3)]
    freeze(model, train=["head.*", *last, *(["encoder.vision.norm.*"] if blocks else [])])
    model.train()
    evaluate_frozen(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.cross_entropy(scores(model), batch().streams["label"].data).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    names = set(before)
    wanted = {n for n in names if n.startswith("head.") or any(n.startswith(glob[:-1]) for glob in last)}
    wanted |= {n for n in names if blocks and n.startswith("encoder.vision.norm.")}
    assert moved - wanted == set()
    assert {n for n in wanted if n.endswith("weight")} <= moved
    assert model.encoder.vision.blocks[0].training is (blocks == 3)


def test_it_is_saved_with_its_encoder(tmp_path: Path) -> None:
    model = made(ENCODERS[0]).eval()
    folder.save(model, tmp_path)
    again = folder.load(tmp_path).eval()
    assert torch.equal(scores(again), scores(model))
    assert again.streams()["image"]["size"] == 8
    assert again.streams()["label"]["num_classes"] == 3


def test_an_encoder_of_texts_is_named() -> None:
    with pytest.raises(ValueError, match="model: encoder needs a model that has more than Bert offers"):
        made({"use": "bert:Bert", "vocab_size": 9, "width": 8, "layers": 1, "heads": 2})
