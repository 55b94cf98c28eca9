"""ViLBERT against a second implementation, written from the paper's formulas: outputs, losses and gradients to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_regions import LENGTHS, NUMS, Parts, rows, same_gradients
from vlpipe.models.interface.capabilities import FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.systems.regions.vilbert import VilBert

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 7,
    "width": 24,
    "heads": 3,
    "layers": 3,
    "region_width": 20,
    "region_heads": 2,
    "region_mlp_width": 28,
    "region_layers": 2,
    "co_width": 16,
    "co_heads": 4,
    "max_text_length": 12,
    "dropout": 0.0,
}


@pytest.fixture
def model() -> VilBert:
    torch.manual_seed(0)
    found = noisy(VilBert(**SIZES), but="nothing")
    assert isinstance(found, VilBert)
    return found


def reference(model: VilBert, row: int) -> tuple[Tensor, Tensor]:
    """Hidden states of words, and of the image and its regions, of one row: 3 layers of words, of which the last two follow
    a layer of co-attention each, as those of regions do."""
    part = Parts(model)
    text, regions = rows()
    words, image = part.words(text.data[row, : LENGTHS[row]]), part.regions(regions, row, whole=True)
    words = part.layer(words, "word_blocks.0", 3)
    for i in range(2):
        mixed = []
        for at, (x, context) in enumerate(((words, image), (image, words))):
            name = f"co_blocks.{i}.cross.{at}"
            k, v = part.linear(context, f"{name}.kv").chunk(2, -1)
            found = part.mix(part.linear(x, f"{name}.q"), k, v, 4)
            mixed.append(part.norm(x + part.linear(found, f"{name}.out"), f"{name}.norm"))
        words = part.feed_forward(mixed[0], f"co_blocks.{i}.words")
        image = part.feed_forward(mixed[1], f"co_blocks.{i}.regions")
        words, image = (
            part.layer(words, f"word_blocks.{i + 1}", 3),
            part.layer(image, f"region_blocks.{i}", 2),
        )
    return words, image


def test_hidden_states_and_match(model: VilBert) -> None:
    text, regions = rows()
    out, part = outputs(model, text=text, regions=regions), Parts(model)
    for row in range(5):
        words, image = reference(model, row)
        torch.testing.assert_close(out.fused["text"][row, : LENGTHS[row]], words, **TOLERANCE)
        torch.testing.assert_close(out.fused["regions"][row, : NUMS[row] + 1], image, **TOLERANCE)
        both = [part.linear(words[0], "word_pool"), part.linear(image[0], "region_pool")]
        pooled = both[0].clamp(min=0) * both[1].clamp(min=0)
        torch.testing.assert_close(out.match[row], part.linear(pooled, "match_head"), **TOLERANCE)


@pytest.mark.parametrize("matched_only", [False, True])
def test_losses_and_gradients(model: VilBert, matched_only: bool) -> None:
    """The sum of masked words, KL(detector || model) of masked regions, and matching; the first two of matching rows alone
    if so asked. Each is a mean over its own items."""
    text, regions = rows()
    out, part = outputs(model, text=text, regions=regions), Parts(model)
    words, objects, matching = [], [], []
    for row in range(5):
        states, image = reference(model, row)
        label = int(text.target["match"][row])
        pooled = F.relu(part.linear(states[0], "word_pool")) * F.relu(part.linear(image[0], "region_pool"))
        matching.append(-part.linear(pooled, "match_head").log_softmax(-1)[label])
        if matched_only and not label:
            continue
        for at, true in enumerate(text.target["ids"][row, : LENGTHS[row]].tolist()):
            if true >= 0:
                words.append(-part.word_logits(states[at]).log_softmax(-1)[true])
        for at in range(int(NUMS[row])):
            if regions.target["masked"][row, at]:
                q, p = regions.extra["prob"][row, at], part.obj_logits(image[at + 1]).softmax(-1)
                objects.append((q * (q / p).log()).sum())
    wanted = sum(torch.stack(one).mean() for one in (words, objects, matching))
    total = torch.zeros(())
    for objective in (MaskedLm(matched_only=matched_only), RegionKl(matched_only=matched_only), Match()):
        term = objective(out)[objective.LOSSES[0]]
        count = objective.counts(out.batch).get(objective.LOSSES[0], 5)
        assert float(count) == float(term.count)
        total = total + term.total / term.count
    assert isinstance(wanted, Tensor)
    assert same_gradients(model, total, wanted) == len(list(model.parameters()))


def test_neither_stream_sees_the_other_without_cross_attention(model: VilBert) -> None:
    text, regions = rows()
    own, others = torch.arange(5), torch.arange(5).roll(1)
    alone = noisy(VilBert(**SIZES, cross_attention=False), but="nothing")
    for one, equal in ((model, False), (alone, True)):
        out = outputs(one, text=text, regions=regions)
        assert (
            torch.allclose(out.word_hidden, out.paired({"text": own, "regions": others}).word_hidden) is equal
        )
        found = out.paired({"text": others, "regions": own}).region_hidden
        assert torch.allclose(out.region_hidden, found) is equal


def test_capabilities_and_wrong_sizes(model: VilBert) -> None:
    assert missing(model, [FillsWords, Matches, Fuses, PredictsRegions]) == []
    with pytest.raises(ValueError, match="predicts objects of regions, not 'feat'"):
        model.predict_regions(torch.zeros(20), "feat")
    with pytest.raises(ValueError, match="as many region_layers as layers, got 4 and 3"):
        VilBert(**{**SIZES, "region_layers": 4})
