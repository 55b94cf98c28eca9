"""Unicoder-VL against a second implementation, written from the paper's formulas: outputs, losses and gradients to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_regions import LENGTHS, NUMS, Parts, rows, same_gradients
from vlpipe.models.interface.capabilities import FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass
from vlpipe.models.systems.regions.unicoder_vl import UnicoderVl

SEP = 3
SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "sep": SEP,
    "feat_dim": 10,
    "num_objects": 7,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "max_text_length": 12,
    "dropout": 0.0,
}


def make(**changes: Any) -> UnicoderVl:
    torch.manual_seed(0)
    found = noisy(UnicoderVl(**{**SIZES, **changes}), but="nothing")
    assert isinstance(found, UnicoderVl)
    return found


def reference(model: UnicoderVl, row: int, cut: bool = False) -> tuple[Tensor, Tensor]:
    """Hidden states of the text and of the regions of one row, in the order [CLS] regions [SEP] words [SEP]."""
    part = Parts(model)
    text, regions = rows()
    ids, num = text.data[row, : LENGTHS[row]], int(NUMS[row])
    words = part.words(torch.cat([ids[:1], torch.tensor([SEP]), ids[1:]]))
    image = part.regions(regions, row, whole=False, added=part.p["image_token"])
    x = torch.cat([words[:1], image, words[1:]])
    of_image = torch.tensor([0 < at <= num for at in range(len(x))])
    seen = of_image[:, None] == of_image[None] if cut else None
    for i in range(2):
        x = part.layer(x, f"blocks.{i}", 3, seen)
    return torch.cat([x[:1], x[num + 2 :]]), x[1 : num + 1]


@pytest.mark.parametrize("cross_attention", [True, False])
def test_hidden_states_and_match(cross_attention: bool) -> None:
    model = make(cross_attention=cross_attention)
    text, regions = rows()
    out, part = outputs(model, text=text, regions=regions), Parts(model)
    for row in range(5):
        words, image = reference(model, row, cut=not cross_attention)
        torch.testing.assert_close(out.fused["text"][row, : LENGTHS[row]], words, **TOLERANCE)
        torch.testing.assert_close(out.fused["regions"][row, : NUMS[row]], image, **TOLERANCE)
        logits = part.linear(part.linear(words[0], "pooler.dense").tanh(), "match_head")
        torch.testing.assert_close(out.match[row], logits, **TOLERANCE)


def test_losses_and_gradients() -> None:
    """(masked words + masked objects) of rows that match + matching of all; the target of a region is the detector's class,
    however sure the detector is."""
    model = make()
    text, regions = rows()
    out, part = outputs(model, text=text, regions=regions), Parts(model)
    words, objects, matching = [], [], []
    for row in range(5):
        states, image = reference(model, row)
        label = int(text.target["match"][row])
        logits = part.linear(part.linear(states[0], "pooler.dense").tanh(), "match_head")
        matching.append(-logits.log_softmax(-1)[label])
        if label:
            for at, true in enumerate(text.target["ids"][row, : LENGTHS[row]].tolist()):
                if true >= 0:
                    words.append(-part.word_logits(states[at]).log_softmax(-1)[true])
            for at in range(int(NUMS[row])):
                if regions.target["masked"][row, at]:
                    true = int(regions.extra["obj"][row, at])
                    objects.append(-part.obj_logits(image[at]).log_softmax(-1)[true])
    wanted = sum(torch.stack(one).mean() for one in (words, objects, matching))
    objectives = [
        MaskedLm(matched_only=True),
        RegionClass(which="obj", regions="masked", confidence=False, matched_only=True),
        Match(),
    ]
    total = torch.zeros(())
    for objective, count in zip(objectives, (len(words), len(objects), 5), strict=True):
        term = objective(out)[objective.LOSSES[0]]
        assert float(term.count) == count
        total = total + term.total / term.count
    assert isinstance(wanted, Tensor)
    assert same_gradients(model, total, wanted) == len(list(model.parameters()))


def test_capabilities() -> None:
    assert missing(make(), [FillsWords, Matches, Fuses, PredictsRegions]) == []
    with pytest.raises(ValueError, match="predicts objects of regions, not 'attr'"):
        make().predict_regions(torch.zeros(24), "attr")
