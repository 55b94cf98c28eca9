"""VL-BERT against a second implementation, written from the paper's formulas, gradients included, to 1e-5."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_bert import SecondBert, gradients_agree
from vlpipe.models.detection.roi import roi_align, roi_align_images
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.regions.soft_class import SoftRegionClass
from vlpipe.models.systems.regions.vl_bert import VlBert, places

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "num_objects": 7,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "place_dim": 16,
}
CNN = {"depths": [1, 1, 1, 1], "width": 2, "pool_size": 3}
TOKENS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])


def model_of(**changes: Any) -> VlBert:
    torch.manual_seed(0)
    found = noisy(VlBert(**{**SIZES, "feat_dim": 10, "max_text_length": 12, **changes}), but="cnn")
    assert isinstance(found, VlBert)
    return found


def streams() -> dict[str, Stream]:
    """Of the last row all regions are hidden; of the first region of each, the probabilities may not sum to 1."""
    draw = torch.Generator().manual_seed(1)
    mask, seen = torch.arange(8)[None] < TOKENS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 8), generator=draw).masked_fill(~mask, 0)
    target = ids.masked_fill((torch.rand(5, 8, generator=draw) < 0.6) | ~mask, IGNORE)
    corners = torch.rand(5, 4, 4, generator=draw) / 2
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & seen
    masked[:, 0] = masked[4] = True
    hidden = masked & (torch.rand(5, 4, generator=draw) < 0.7)
    hidden[4], hidden[0] = masked[4], False
    prob = torch.rand(5, 4, 7, generator=draw).softmax(-1)
    prob[1, 0] *= 0.5
    extra = {
        "box": torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1),
        "prob": prob,
        "hidden": hidden,
        "pixels": torch.randn(5, 3, 32, 32, generator=draw),
    }
    feats = torch.randn(5, 4, 10, generator=draw) * seen[..., None]
    return {
        "text": Stream(ids, mask, target={"ids": target}),
        "regions": Stream(feats.masked_fill(hidden[..., None], 0), seen, extra, {"masked": masked}),
    }


def place(box: list[float]) -> Tensor:
    """Sines and cosines of the four coordinates, one by one: 16 values, 2 wavelengths."""
    waves = [1000.0 ** (k / 2) for k in range(2)]
    found = []
    for x in box:
        found += [math.sin(100 * x / wave) for wave in waves] + [math.cos(100 * x / wave) for wave in waves]
    return torch.tensor(found)


def features(model: VlBert, row: int) -> Tensor:
    """The whole image's, then the regions'."""
    p, given, num = dict(model.named_parameters()), streams()["regions"], int(REGIONS[row])
    boxes = torch.cat([torch.tensor([[0.0, 0, 1, 1]]), given.extra["box"][row, :num]])
    if model.cnn is not None:
        maps = model.cnn.backbone.maps(given.extra["pixels"][row : row + 1])[0]
        pooled = roi_align(maps, boxes * maps.shape[1], 3, 1.0, sampling_ratio=2)
        return model.cnn.layer4(pooled).mean((2, 3))
    hidden = given.extra["hidden"][row, :num]
    each = [p["hidden_feat"] if hide else given.data[row, k] for k, hide in enumerate(hidden.tolist())]
    shown = [given.data[row, k] for k, hide in enumerate(hidden.tolist()) if not hide]
    whole = torch.stack(shown).mean(0) if shown else p["hidden_feat"]
    return torch.stack([whole, *each])


def reference(model: VlBert, row: int) -> Tensor:
    """Hidden states of one row, without padding: words, the whole image, regions, [END]."""
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    p, length, num = bert.p, int(TOKENS[row]), int(REGIONS[row])
    box = [[0.0, 0.0, 1.0, 1.0], *given["regions"].extra["box"][row, :num].tolist()]
    geometry = torch.stack([place(one) for one in box])
    visual = F.relu(bert.linear(torch.cat([features(model, row), geometry], -1), "visual"))
    of_words, of_regions = bert.norm(visual[:1], "visual_norms.0"), bert.norm(visual, "visual_norms.1")
    at, types = p["words.positions.weight"], p["words.types.weight"]
    words = p["words.words.weight"][given["text"].data[row, :length]] + of_words + at[:length] + types[0]
    kinds = torch.tensor([0, *given["regions"].extra["hidden"][row, :num].long().tolist()])
    regions = p["special.weight"][kinds] + of_regions + at[length] + types[2]
    end = p["special.weight"][2] + of_words + at[length + 1] + types[2]
    return bert.encoder(bert.norm(torch.cat([words, regions, end]), "words.norm"))


@pytest.mark.parametrize("cnn", [None, CNN])
def test_hidden_states(cnn: Any) -> None:
    model = model_of(cnn=cnn)
    fused = outputs(model, **streams()).fused
    for row in range(5):
        wanted, length, num = reference(model, row), int(TOKENS[row]), int(REGIONS[row])
        torch.testing.assert_close(fused["text"][row, :length], wanted[:length], **TOLERANCE)
        torch.testing.assert_close(fused["regions"][row, :num], wanted[length + 1 : -1], **TOLERANCE)


@pytest.mark.parametrize("cnn", [None, CNN])
def test_losses_and_gradients(cnn: Any) -> None:
    """MLM + -sum q log p of masked regions whose q sums to 1; gradients reach the network that reads the pixels."""
    model = model_of(cnn=cnn)
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    words, classes = [], []
    for row in range(5):
        hidden, target = reference(model, row), given["text"].target["ids"][row]
        for at in (target != IGNORE).nonzero()[:, 0].tolist():
            words.append(-bert.word_logits(hidden[at]).log_softmax(-1)[target[at]])
        for at in given["regions"].target["masked"][row].nonzero()[:, 0].tolist():
            state, q = hidden[int(TOKENS[row]) + 1 + at], given["regions"].extra["prob"][row, at]
            logits = bert.linear(bert.transformed(state, "obj_head.0"), "obj_head.1")
            if abs(float(q.sum()) - 1) < 0.1:
                classes.append(-(q * logits.log_softmax(-1)).sum())
    assert len(classes) == int(given["regions"].target["masked"].sum()) - 1
    out, soft = outputs(model, **given), SoftRegionClass()
    term = soft(out)["region_soft"]
    assert float(term.count) == float(soft.counts(out.batch)["region_soft"]) == len(classes)  # type: ignore[union-attr]
    of_words = MaskedLm()(out)["mlm"]
    found = of_words.total / of_words.count + term.total / term.count  # type: ignore[union-attr]
    wanted = torch.stack(words).mean() + torch.stack(classes).mean()
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    gradients_agree(model, found, wanted)
    if model.cnn is not None:
        assert model.cnn.backbone.conv1.weight.requires_grad


def test_a_hidden_region_cannot_be_told_from_its_feature() -> None:
    """Of cached features, neither its own nor the whole image's feature depends on what is hidden."""
    model, given = model_of(), streams()
    regions = given["regions"]
    other = torch.where(regions.extra["hidden"][..., None], torch.randn_like(regions.data), regions.data)
    changed = {**given, "regions": replace(regions, data=other)}
    torch.testing.assert_close(outputs(model, **given).region_hidden, outputs(model, **changed).region_hidden)


def test_the_visual_part_starts_from_nothing() -> None:
    """With the paper's scale of 0, a new model is a BERT of its words."""
    torch.manual_seed(0)
    model, given = VlBert(**SIZES, feat_dim=10, max_text_length=12).eval(), streams()
    regions = replace(given["regions"], data=torch.randn_like(given["regions"].data))
    changed = outputs(model, text=given["text"], regions=regions)
    torch.testing.assert_close(outputs(model, **given).word_hidden, changed.word_hidden)


def test_regions_of_several_images_at_once_are_those_of_each() -> None:
    torch.manual_seed(0)
    maps, boxes = torch.randn(2, 5, 6, 8), torch.rand(2, 3, 4).cumsum(-1) * 2
    found = roi_align_images(maps, boxes, 4, 0.9, sampling_ratio=3)
    for row in range(2):
        torch.testing.assert_close(found[row], roi_align(maps[row], boxes[row], 4, 0.9, sampling_ratio=3))
    with pytest.raises(ValueError, match="sampling_ratio must be at least 1, got 0"):
        roi_align_images(maps, boxes, 4, 0.9, sampling_ratio=0)


def test_what_does_not_fit_is_said() -> None:
    model, given = model_of(cnn=CNN), streams()
    assert model.streams()["regions"] == {"use": "pixel_regions:PixelRegions", "size": 600, "probs": True}
    extra = {name: value for name, value in given["regions"].extra.items() if name != "pixels"}
    with pytest.raises(ValueError, match="its maker is pixel_regions:PixelRegions"):
        _ = outputs(model, text=given["text"], regions=replace(given["regions"], extra=extra)).fused
    with pytest.raises(ValueError, match="place_dim must be a multiple of 8, got 12"):
        model_of(place_dim=12)
    with pytest.raises(ValueError, match="predicts objects of regions, not 'feat'"):
        model.predict_regions(torch.zeros(1, 24), "feat")
    assert places(torch.tensor([[0.0, 0, 1, 1]]), 16)[0].tolist() == pytest.approx(
        place([0.0, 0, 1, 1]).tolist(), abs=1e-5
    )
