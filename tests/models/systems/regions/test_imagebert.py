"""ImageBERT against a second implementation, written from the paper's formulas, gradients included, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_bert import SecondBert, gradients_agree
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.systems.regions.imagebert import ImageBert

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 7,
    "width": 24,
    "layers": 2,
    "heads": 3,
}
TOKENS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])
OBJECTIVES = (
    MaskedLm(matched_only=True),
    RegionClass(which="obj", regions="masked", confidence=False, matched_only=True),
    RegionMse(matched_only=True),
    Match(),
)


def model_of(**changes: Any) -> ImageBert:
    torch.manual_seed(0)
    found = noisy(ImageBert(**{**SIZES, "max_text_length": 12, **changes}), but="nothing")
    assert isinstance(found, ImageBert)
    return found


def streams() -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(1)
    mask, seen = torch.arange(8)[None] < TOKENS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 8), generator=draw).masked_fill(~mask, 0)
    target = ids.masked_fill((torch.rand(5, 8, generator=draw) < 0.6) | ~mask, IGNORE)
    corners = torch.rand(5, 4, 4, generator=draw) / 2
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & seen
    masked[:, 0] = True
    feats = torch.randn(5, 4, 10, generator=draw) * seen[..., None]
    extra = {
        "box": torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1),
        "obj": torch.randint(0, 7, (5, 4), generator=draw),
        "obj_conf": torch.rand(5, 4, generator=draw),
    }
    return {
        "text": Stream(ids, mask, target={"ids": target, "match": torch.tensor([1, 0, 1, 1, 0])}),
        "regions": Stream(
            feats.masked_fill(masked[..., None], 0), seen, extra, {"masked": masked, "feat": feats}
        ),
    }


def reference(model: ImageBert, row: int) -> Tensor:
    """Hidden states of one row, without padding: words, then regions."""
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    p, length, num = bert.p, int(TOKENS[row]), int(REGIONS[row])
    ids = given["text"].data[row, :length]
    words = p["words.words.weight"][ids] + p["words.positions.weight"][:length] + p["words.types.weight"][0]
    x1, y1, x2, y2 = given["regions"].extra["box"][row, :num].unbind(-1)
    place = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], -1)
    seen = bert.linear(given["regions"].data[row, :num], "regions.feat") + bert.linear(place, "regions.box")
    seen = bert.norm(seen + p["words.types.weight"][1] + p["region_position"], "regions.norm")
    allowed = None
    if not model.config.cross_attention:
        of_text = torch.arange(length + num) < length
        allowed = of_text[:, None] == of_text
    return bert.encoder(torch.cat([bert.norm(words, "words.norm"), seen]), allowed)


@pytest.mark.parametrize("changes", [{}, {"cross_attention": False}])
def test_hidden_states(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    fused = outputs(model, **streams()).fused
    for row in range(5):
        found = torch.cat([fused["text"][row, : TOKENS[row]], fused["regions"][row, : REGIONS[row]]])
        torch.testing.assert_close(found, reference(model, row), **TOLERANCE)


def test_losses_and_gradients() -> None:
    """L = MLM + MOC + MRFR of matching pairs alone + ITM of all; the features' squared error is a mean over values."""
    model = model_of()
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    text, regions = given["text"], given["regions"]
    parts: dict[str, list[Tensor]] = {"mlm": [], "region_obj": [], "region_mse": [], "match": []}
    for row in range(5):
        hidden, length = reference(model, row), int(TOKENS[row])
        pooled = torch.tanh(bert.linear(hidden[0], "pooler.dense"))
        is_match = int(text.target["match"][row])
        parts["match"].append(-bert.linear(pooled, "match_head").log_softmax(-1)[is_match])
        if not is_match:
            continue
        for at in (text.target["ids"][row] != IGNORE).nonzero()[:, 0].tolist():
            inner = bert.transformed(hidden[at], "word_head")
            logits = inner @ bert.p["words.words.weight"].t() + bert.p["word_head.decoder.bias"]
            parts["mlm"].append(-logits.log_softmax(-1)[text.target["ids"][row, at]])
        for at in regions.target["masked"][row].nonzero()[:, 0].tolist():
            state = hidden[length + at]
            of_class, of_feat = (
                bert.linear(bert.transformed(state, f"region_heads.{kind}.0"), f"region_heads.{kind}.1")
                for kind in ("obj", "feat")
            )
            parts["region_obj"].append(-of_class.log_softmax(-1)[regions.extra["obj"][row, at]])
            parts["region_mse"].append((of_feat - regions.target["feat"][row, at]).square().mean())
    out = outputs(model, **given)
    found = {objective.LOSSES[0]: objective(out)[objective.LOSSES[0]] for objective in OBJECTIVES}
    for objective in OBJECTIVES:
        name = objective.LOSSES[0]
        assert float(objective.counts(out.batch).get(name, 5)) == float(found[name].count) == len(parts[name])  # type: ignore[union-attr]
        mean = found[name].total / found[name].count  # type: ignore[union-attr]
        torch.testing.assert_close(mean, torch.stack(parts[name]).mean(), **TOLERANCE)
    total = sum((term.total / term.count for term in found.values()), torch.zeros(()))  # type: ignore[union-attr]
    gradients_agree(model, total, sum((torch.stack(x).mean() for x in parts.values()), torch.zeros(())))


def test_streams_apart_without_cross_attention() -> None:
    given, others = streams(), torch.arange(5).roll(1)
    for cross in (True, False):
        out = outputs(model_of(cross_attention=cross), **given)
        swapped = out.paired({"text": torch.arange(5), "regions": others})
        assert torch.allclose(out.word_hidden, swapped.word_hidden, atol=1e-6) is not cross
    with pytest.raises(ValueError, match="predicts features and objects of regions, not 'attr'"):
        out.model.predict_regions(out.region_hidden, "attr")
