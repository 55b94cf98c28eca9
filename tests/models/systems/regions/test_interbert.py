"""InterBERT against a second implementation, written from the paper's formulas: outputs, losses and gradients to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_regions import LENGTHS, NUMS, OBJECTS, Parts, rows, same_gradients
from vlpipe.models.interface.capabilities import FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.systems.regions.interbert import InterBert

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 7,
    "width": 24,
    "heads": 3,
    "joint_layers": 2,
    "word_layers": 2,
    "region_layers": 1,
    "max_text_length": 12,
    "dropout": 0.0,
}


@pytest.fixture
def model() -> InterBert:
    torch.manual_seed(0)
    found = noisy(InterBert(**SIZES), but="nothing")
    assert isinstance(found, InterBert)
    return found


def reference(model: InterBert, row: int) -> tuple[Tensor, Tensor]:
    """Hidden states of words, and of the image and its regions, of one row: two layers of both, image first, then two of
    words and one of regions."""
    part = Parts(model)
    text, regions = rows()
    kind = part.p["words.types.weight"][1]
    image = part.regions(regions, row, whole=True, added=kind)
    x = torch.cat([image, part.words(text.data[row, : LENGTHS[row]])])
    for i in range(2):
        x = part.layer(x, f"joint_blocks.{i}", 3)
    image, words = x[: len(image)], x[len(image) :]
    for i in range(2):
        words = part.layer(words, f"word_blocks.{i}", 3)
    return words, part.layer(image, "region_blocks.0", 3)


def test_hidden_states(model: InterBert) -> None:
    text, regions = rows()
    out = outputs(model, text=text, regions=regions)
    for row in range(5):
        words, image = reference(model, row)
        torch.testing.assert_close(out.fused["text"][row, : LENGTHS[row]], words, **TOLERANCE)
        torch.testing.assert_close(out.fused["regions"][row, : NUMS[row] + 1], image, **TOLERANCE)


def test_losses_and_gradients(model: InterBert) -> None:
    """Masked words of all rows + KL of masked regions of matching rows, divided by the number of classes + matching."""
    text, regions = rows()
    out, part = outputs(model, text=text, regions=regions), Parts(model)
    words, objects, matching = [], [], []
    for row in range(5):
        states, image = reference(model, row)
        label = int(text.target["match"][row])
        pooled = F.relu(part.linear(states[0], "word_pool")) * F.relu(part.linear(image[0], "region_pool"))
        matching.append(-part.linear(pooled, "match_head").log_softmax(-1)[label])
        for at, true in enumerate(text.target["ids"][row, : LENGTHS[row]].tolist()):
            if true >= 0:
                words.append(-part.word_logits(states[at]).log_softmax(-1)[true])
        for at in range(int(NUMS[row])):
            if label and regions.target["masked"][row, at]:
                q, p = regions.extra["prob"][row, at], part.obj_logits(image[at + 1]).softmax(-1)
                objects.append((q * (q / p).log()).sum() / OBJECTS)
    wanted = sum(torch.stack(one).mean() for one in (words, objects, matching))
    total = torch.zeros(())
    for objective in (MaskedLm(), RegionKl(over_classes="mean", matched_only=True), Match()):
        term = objective(out)[objective.LOSSES[0]]
        total = total + term.total / term.count
    assert isinstance(wanted, Tensor)
    assert same_gradients(model, total, wanted) == len(list(model.parameters()))


def test_capabilities(model: InterBert) -> None:
    assert missing(model, [FillsWords, Matches, Fuses, PredictsRegions]) == []
    with pytest.raises(ValueError, match="predicts objects of regions, not 'feat'"):
        model.predict_regions(torch.zeros(24), "feat")
