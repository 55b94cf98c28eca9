"""UNITER against a second implementation, written from the paper's formulas: outputs and losses to 1e-5."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.objectives.word_region import WordRegion, transport_distance
from vlpipe.models.systems.regions.uniter import Uniter

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 7,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "max_text_length": 12,
}
WORDS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])


@pytest.fixture
def model() -> Uniter:
    torch.manual_seed(0)
    found = noisy(Uniter(**SIZES), but="nothing")
    assert isinstance(found, Uniter)
    return found


def streams() -> tuple[Stream, Stream]:
    draw = torch.Generator().manual_seed(1)
    text_mask = torch.arange(8)[None] < WORDS[:, None]
    mask = torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 8), generator=draw).masked_fill(~text_mask, 0)
    feats, corners = torch.randn(5, 4, 10, generator=draw), torch.rand(5, 4, 4, generator=draw)
    corners = torch.cat([corners[..., :2] / 2, corners[..., :2] / 2 + corners[..., 2:] / 2], -1)
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & mask
    masked[:, 0] = True
    extra = {
        "box": corners,
        "obj": torch.randint(0, 7, (5, 4), generator=draw),
        "obj_conf": torch.rand(5, 4, generator=draw),
    }
    data = feats.masked_fill(masked[..., None], 0) * mask[..., None]
    regions = Stream(data, mask, extra, {"masked": masked, "feat": feats})
    return Stream(ids, text_mask, target={"match": torch.tensor([1, 0, 1, 0, 0])}), regions


def reference(model: Uniter, row: int) -> Tensor:
    """Hidden states of one row, without padding: words, then regions."""
    p = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * p[f"{name}.weight"]
            + p[f"{name}.bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].t() + p[f"{name}.bias"]

    text, regions = streams()
    ids = text.data[row, : WORDS[row]]
    words = (
        p["words.words.weight"][ids] + p["words.positions.weight"][: len(ids)] + p["words.types.weight"][0]
    )
    num = int(REGIONS[row])
    feats = regions.data[row, :num] + regions.target["masked"][row, :num, None] * p["regions.mask"]
    x1, y1, x2, y2 = regions.extra["box"][row, :num].unbind(-1)
    place = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], -1)
    seen = norm(linear(feats, "regions.feat"), "regions.feat_norm") + norm(
        linear(place, "regions.box"), "regions.box_norm"
    )
    x = torch.cat([norm(words, "words.norm"), norm(seen + p["words.types.weight"][1], "regions.norm")])
    for i in range(2):
        q, k, v = linear(x, f"blocks.{i}.attention.qkv").split(24, -1)
        heads = []
        for h in range(3):
            part = slice(8 * h, 8 * h + 8)
            heads.append((q[:, part] @ k[:, part].t() / 8**0.5).softmax(-1) @ v[:, part])
        x = norm(x + linear(torch.cat(heads, -1), f"blocks.{i}.attention.out"), f"blocks.{i}.attention.norm")
        inner = linear(F.gelu(linear(x, f"blocks.{i}.feed_forward.up")), f"blocks.{i}.feed_forward.down")
        x = norm(x + inner, f"blocks.{i}.feed_forward.norm")
    return x


def test_hidden_states(model: Uniter) -> None:
    text, regions = streams()
    fused = outputs(model, text=text, regions=regions).fused
    for row in range(5):
        wanted = reference(model, row)
        found = torch.cat([fused["text"][row, : WORDS[row]], fused["regions"][row, : REGIONS[row]]])
        torch.testing.assert_close(found, wanted, **TOLERANCE)


def test_its_classes_are_those_of_its_loss_by_default() -> None:
    """The detector's 1600 and background: what `RegionKl` compares with."""
    with torch.device("meta"):
        model = Uniter(vocab_size=30, width=12, layers=1, heads=3)
    assert model.predict_regions(torch.zeros(1, 12, device="meta"), "obj").shape == (1, 1601)


def test_losses_of_regions(model: Uniter) -> None:
    text, regions = streams()
    out = outputs(model, text=text, regions=regions)
    errors, nats, num = 0.0, 0.0, 0
    for row in range(5):
        hidden = reference(model, row)[WORDS[row] :]
        for at in range(int(REGIONS[row])):
            if regions.target["masked"][row, at]:
                num += 1
                feat = model.predict_regions(hidden[at], "feat")
                errors += float((feat - regions.target["feat"][row, at]).square().mean())
                logits = model.predict_regions(hidden[at], "obj").log_softmax(-1)
                nats -= float(regions.extra["obj_conf"][row, at] * logits[regions.extra["obj"][row, at]])
    mse, cls = RegionMse()(out)["region_mse"], RegionClass(which="obj", regions="masked")(out)["region_obj"]
    assert (int(mse.count), int(cls.count)) == (num, num)
    torch.testing.assert_close(float(mse.total), errors, rtol=1e-4, atol=1e-5)
    squares = RegionMse(over_values="sum")(out)["region_mse"]
    num_values = regions.data.shape[2]
    torch.testing.assert_close(float(squares.total), num_values * errors, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="over_values must be mean or sum, got 'max'"):
        RegionMse(over_values="max")  # type: ignore[arg-type]
    torch.testing.assert_close(float(cls.total), nats, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="needs a model that predicts 'attr' of regions; Uniter predicts feat, obj"
    ):
        RegionClass(which="attr").bind(model)
    with pytest.raises(ValueError, match="predicts features and objects of regions, not 'attr'"):
        model.predict_regions(out.region_hidden, "attr")


@pytest.mark.parametrize("background", [True, False])
def test_the_loss_of_the_detector_s_probabilities(model: Uniter, background: bool) -> None:
    """Chen et al., MRC-kl: the sum over masked regions of the sum over classes of q log(q / p)."""
    text, regions = streams()
    prob = torch.rand(5, 4, 7 if background else 8).square()
    prob[0, 0] = torch.eye(prob.shape[-1])[2]  # zeros count nothing
    prob = (prob / prob.sum(-1, keepdim=True)).half()
    regions = replace(regions, extra={**regions.extra, "prob": prob})
    total, right, num = 0.0, 0, 0
    for row in range(5):
        hidden = reference(model, row)[WORDS[row] :]
        for at in range(int(REGIONS[row])):
            if regions.target["masked"][row, at]:
                num += 1
                p = model.predict_regions(hidden[at], "obj").softmax(-1).tolist()
                q = prob[row, at].tolist()[:7]
                q = [one / sum(q) for one in q]
                total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a)
                right += q.index(max(q)) == p.index(max(p))
    found = RegionKl(background=background)(outputs(model, text=text, regions=regions))
    assert int(found["region_kl"].count) == num
    torch.testing.assert_close(float(found["region_kl"].total), total, rtol=1e-4, atol=1e-5)
    assert int(found["region_kl_accuracy"].total) == right
    mean = RegionKl(background=background, over_classes="mean")(outputs(model, text=text, regions=regions))
    torch.testing.assert_close(float(mean["region_kl"].total), total / 7, rtol=1e-4, atol=1e-5)


def test_certain_probabilities_are_classes(model: Uniter) -> None:
    """MRC-kl of a detector that is sure of each class is MRC, the cross entropy."""
    text, regions = streams()
    sure = {"prob": F.one_hot(regions.extra["obj"], 7).half(), "obj_conf": torch.ones(5, 4)}
    out = outputs(model, text=text, regions=replace(regions, extra={**regions.extra, **sure}))
    found, wanted = RegionKl()(out), RegionClass(which="obj", regions="masked")(out)
    for name, other in (("region_kl", "region_obj"), ("region_kl_accuracy", "region_obj_accuracy")):
        torch.testing.assert_close(found[name].total, wanted[other].total)
        assert int(found[name].count) == int(wanted[other].count)


def test_probabilities_that_are_not_there_are_named(model: Uniter) -> None:
    text, regions = streams()
    with pytest.raises(ValueError, match=r"'regions' has no probabilities; set streams.regions.probs: true"):
        RegionKl()(outputs(model, text=text, regions=regions))
    regions = replace(regions, extra={**regions.extra, "prob": torch.rand(5, 4, 7)})
    with pytest.raises(
        ValueError, match="the detector has 6 classes without background, but the model predicts 7"
    ):
        RegionKl(background=False)(outputs(model, text=text, regions=regions))
    with pytest.raises(ValueError, match="over_classes must be sum or mean, got 'max'"):
        RegionKl(over_classes="max")  # type: ignore[arg-type]


def test_features_are_predicted_by_the_transpose_of_their_projection(model: Uniter) -> None:
    hidden = torch.randn(3, 24)
    inner = model.feat_transform(hidden)
    wanted = torch.einsum("bw,wf->bf", inner, model.regions.feat.weight) + model.feat_bias
    torch.testing.assert_close(model.predict_regions(hidden, "feat"), wanted)


def test_words_and_regions_are_aligned_with_special_tokens(model: Uniter) -> None:
    """Chen et al.: every word, [CLS] and [SEP] included, and every region; pairs that match pull, others push."""
    text, regions = streams()
    out = outputs(model, text=text, regions=regions)
    term = WordRegion(image="regions", special_tokens=True)(out)["word_region"]
    total = 0.0
    for row in range(5):
        x = reference(model, row)
        words, parts = x[None, : WORDS[row]], x[None, WORDS[row] :]
        ones = [torch.ones(one.shape[:2], dtype=torch.bool) for one in (words, parts)]
        sign = 1 if text.target["match"][row] else -1
        total += sign * float(transport_distance(words, parts, *ones))
    torch.testing.assert_close(float(term.total), total, rtol=1e-4, atol=1e-4)
