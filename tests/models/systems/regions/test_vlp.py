"""VLP against a second implementation, written from the paper's formulas, gradients included, to 1e-5; its masks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vlpipe.workflows
from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_bert import SecondBert, gradients_agree
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.generation.steps import Decoding, Steps
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.interface.capabilities import FillsWords, Generates, Matches, missing
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.systems.regions.vlp import Vlp
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.train import Train

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 6,
    "width": 24,
    "layers": 2,
    "heads": 3,
}
CLS, SEP, MASK = 1, 2, 3
TOKENS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])
LEFT = torch.tensor([True, False, True, True, False])


@pytest.fixture
def model() -> Vlp:
    torch.manual_seed(0)
    found = noisy(Vlp(**SIZES, sep=SEP, mask=MASK, start=CLS, pad=0, max_text_length=12), but="nothing")
    assert isinstance(found, Vlp)
    return found


def streams() -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(1)
    mask, seen = torch.arange(8)[None] < TOKENS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(4, 37, (5, 8), generator=draw)
    ids[:, 0], ids[torch.arange(5), TOKENS - 1] = CLS, SEP
    ids = ids.masked_fill(~mask, 0)
    hidden = (torch.rand(5, 8, generator=draw) < 0.4) & mask
    hidden[:, 1], hidden[:, 0] = True, False
    corners = torch.rand(5, 4, 4, generator=draw) / 2
    extra = {
        "box": torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1),
        "obj_conf": torch.rand(5, 4, generator=draw),
        "prob": torch.rand(5, 4, 7, generator=draw),
    }
    target = {"ids": ids.masked_fill(~hidden, IGNORE)}
    return {
        "text": Stream(ids.masked_fill(hidden, MASK), mask, {"left_to_right": LEFT}, target),
        "regions": Stream(torch.randn(5, 4, 10, generator=draw) * seen[..., None], seen, extra),
    }


def embedded(bert: SecondBert, ids: Tensor, positions: Tensor, segment: int) -> Tensor:
    p = bert.p
    found = (
        p["words.words.weight"][ids]
        + p["words.positions.weight"][positions]
        + p["words.types.weight"][segment]
    )
    return bert.norm(found, "words.norm")


def source(bert: SecondBert, row: int, segment: int) -> Tensor:
    """[CLS] regions [SEP] of one row, embedded."""
    given, num = streams()["regions"], int(REGIONS[row])
    inner = F.relu(bert.linear(given.data[row, :num], "feat.0"))
    feat = F.relu(bert.linear(inner, "feat.2"))
    x1, y1, x2, y2 = given.extra["box"][row, :num].unbind(-1)
    place = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1), given.extra["obj_conf"][row, :num]], -1)
    both = []
    for x in (place, given.extra["prob"][row, :num]):
        centred = x - x.mean(-1, keepdim=True)
        both.append(centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    seen = feat + F.relu(bert.linear(torch.cat(both, -1), "place.0")) + bert.p["words.types.weight"][segment]
    ends = embedded(bert, torch.tensor([CLS, SEP]), torch.tensor([0, 1]), segment)
    return torch.cat([ends[:1], bert.norm(seen, "words.norm"), ends[1:]])


def reference(model: Vlp, row: int) -> Tensor:
    """Hidden states of `[CLS] regions [SEP] words [SEP]` of one row, without padding."""
    bert, num = SecondBert(model, width=24, heads=3, layers=2), int(TOKENS[row]) - 1
    is_left = bool(LEFT[row])
    before = source(bert, row, 4 if is_left else 0)
    ids = streams()["text"].data[row, 1 : num + 1]
    words = embedded(bert, ids, torch.arange(2, num + 2), 5 if is_left else 1)
    return bert.encoder(torch.cat([before, words]), by_hand(len(before), num) if is_left else None)


def by_hand(num_source: int, num_words: int) -> Tensor:
    """The paper's sequence-to-sequence mask, entry by entry."""
    length = num_source + num_words
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            if query < num_source:
                allowed[query, key] = key < num_source  # the source sees the source alone
            else:
                allowed[query, key] = (
                    key < num_source or key <= query
                )  # a word: the source, and words up to itself
    return allowed


def test_masks_entry_by_entry() -> None:
    seen, words = torch.tensor([[True, True, False, True]] * 2), torch.tensor([[True, True, False]] * 2)
    found = Vlp.allowed(seen, words, torch.tensor([True, False]))[:, 0]
    real = torch.cat([seen, words], 1)[0]
    assert torch.equal(found[0], by_hand(4, 3) & real)
    assert torch.equal(found[1], real.expand(7, 7))
    wanted = [[1, 1, 0, 1, 0, 0, 0]] * 4 + [
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 1, 0],
        [1, 1, 0, 1, 1, 1, 0],
    ]
    assert found[0].int().tolist() == wanted


def test_hidden_states(model: Vlp) -> None:
    fused = outputs(model, **streams()).fused
    for row in range(5):
        wanted, num = reference(model, row), int(REGIONS[row])
        torch.testing.assert_close(fused["regions"][row, :num], wanted[1 : num + 1], **TOLERANCE)
        text = torch.cat([wanted[:1], wanted[num + 2 :]])
        torch.testing.assert_close(fused["text"][row, : TOKENS[row]], text, **TOLERANCE)


def test_loss_and_gradients(model: Vlp) -> None:
    bert, given, parts = SecondBert(model, width=24, heads=3, layers=2), streams(), []
    for row in range(5):
        hidden, target = reference(model, row), given["text"].target["ids"][row]
        for at in (target != IGNORE).nonzero()[:, 0].tolist():
            state = hidden[int(REGIONS[row]) + 1 + at]
            parts.append(-bert.word_logits(state).log_softmax(-1)[target[at]])
    term = MaskedLm()(outputs(model, **given))["mlm"]
    assert float(term.count) == len(parts)  # type: ignore[union-attr]
    found, wanted = term.total / term.count, torch.stack(parts).mean()  # type: ignore[union-attr]
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    gradients_agree(model, found, wanted)


def test_the_loss_of_a_caption_is_that_of_its_masks_one_by_one(model: Vlp) -> None:
    """Each next word is predicted by [MASK] after the words before it, in a sequence that ends with it."""
    given = streams()
    ids = torch.where(given["text"].target["ids"] == IGNORE, given["text"].data, given["text"].target["ids"])
    given["text"] = Stream(ids, given["text"].mask)
    bert, parts = SecondBert(model, width=24, heads=3, layers=2), []
    for row in range(5):
        before = source(bert, row, 4)
        for at in range(1, int(TOKENS[row])):
            known = torch.cat([ids[row, 1:at], torch.tensor([MASK])])
            words = embedded(bert, known, torch.arange(2, at + 2), 5)
            hidden = bert.encoder(torch.cat([before, words]), by_hand(len(before), at))
            parts.append(-bert.word_logits(hidden[-1]).log_softmax(-1)[ids[row, at]])
    objective = Lm()
    objective.bind(model)
    term = objective(outputs(model, **given))["lm"]
    assert float(term.count) == len(parts)  # type: ignore[union-attr]
    found, wanted = term.total / term.count, torch.stack(parts).mean()  # type: ignore[union-attr]
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    gradients_agree(model, found, wanted)


def test_captions_are_the_likeliest_words_in_turn(model: Vlp) -> None:
    assert missing(model, [FillsWords, Generates, Matches]) == [Matches]
    for block in model.blocks:  # so that images differ in their words
        for part in (block.attention.qkv, block.attention.out):  # type: ignore[union-attr]
            part.weight.data.mul_(3)
    model.words.words.weight.data.mul_(2)
    images = outputs(model, **streams()).image_tokens.detach()
    with torch.inference_mode():
        found = sample(model, images, max_length=6)
        fixed = sample(model, images, max_length=6, steps=Steps(model, Decoding(static_cache=True)))
        beams = beam(model, images, num_beams=1, max_length=6)
        bert = SecondBert(model, width=24, heads=3, layers=2)
        for row in range(5):
            before, ids = source(bert, row, 4), []
            while len(ids) < 6:
                words = embedded(bert, torch.tensor([*ids, MASK]), torch.arange(2, len(ids) + 3), 5)
                hidden = bert.encoder(torch.cat([before, words]), by_hand(len(before), len(ids) + 1))
                logits = bert.word_logits(hidden[-1])
                logits[[0, CLS, MASK]] = -torch.inf
                if (best := int(logits.argmax())) == SEP:
                    break
                ids.append(best)
            assert found[row] == ids
    assert found == fixed == beams
    assert len({tuple(one) for one in found}) > 1


def test_what_is_missing_is_said(model: Vlp) -> None:
    given = streams()
    extra = {name: value for name, value in given["regions"].extra.items() if name != "prob"}
    bare = Stream(given["regions"].data, given["regions"].mask, extra)
    with pytest.raises(ValueError, match=r"set streams\.regions\.probs: true"):
        _ = outputs(model, text=given["text"], regions=bare).fused
    ids = torch.full((5, 14), 5)
    with pytest.raises(ValueError, match="14 tokens, but the model has 12 positions"):
        _ = outputs(model, text=Stream(ids, ids > 0), regions=given["regions"]).fused


def test_the_workflow_draws_one_mask_per_step() -> None:
    """Zhou et al.: sequence-to-sequence with probability 0.75, the same for all samples of an optimiser step."""
    workflow = Workflow.load(str(Path(vlpipe.workflows.__path__[0]) / "vlp.yaml"))
    (recipe,) = (step.stage for step in workflow.steps if isinstance(step.stage, Train))
    drawn = [recipe.task_of(step) for step in range(2000)]
    assert abs(drawn.count("s2s") / 2000 - 0.75) < 4 * (0.75 * 0.25 / 2000) ** 0.5
    rates = {name: recipe.views[recipe.tasks[name].view or ""][-1] for name in ("s2s", "bi")}
    assert {name: dict(one)["rate"] for name, one in rates.items()} == {"s2s": 1.0, "bi": 0.0}
