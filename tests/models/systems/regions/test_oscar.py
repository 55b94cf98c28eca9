"""Oscar and Oscar+ against a second implementation, written from the papers' formulas, gradients included, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_bert import SecondBert, gradients_agree
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.interface.capabilities import Matches, missing
from vlpipe.models.interface.pair_capabilities import TellsPolluted
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.pairs.polluted import Polluted
from vlpipe.models.systems.regions.oscar import Oscar

SIZES: dict[str, Any] = {"vocab_size": 37, "feat_dim": 10, "width": 24, "layers": 2, "heads": 3}
TOKENS, REGIONS = torch.tensor([9, 5, 6, 4, 7]), torch.tensor([4, 1, 3, 2, 4])


def model_of(**changes: Any) -> Oscar:
    torch.manual_seed(0)
    found = noisy(Oscar(**{**SIZES, "max_text_length": 12, **changes}), but="nothing")
    assert isinstance(found, Oscar)
    return found


def streams() -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(1)
    mask, seen = torch.arange(9)[None] < TOKENS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 9), generator=draw).masked_fill(~mask, 0)
    target = ids.masked_fill((torch.rand(5, 9, generator=draw) < 0.6) | ~mask, IGNORE)
    labels = {"match": torch.tensor([1, 0, 1, 0, 0]), "polluted": torch.tensor([0, 1, 0, 2, 1])}
    segment = (torch.arange(9)[None] >= TOKENS[:, None] - 2).long() * mask
    corners = torch.rand(5, 4, 4, generator=draw) / 2
    box = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)
    feats = torch.randn(5, 4, 10, generator=draw) * seen[..., None]
    return {
        "text": Stream(ids, mask, {"segment": segment}, {"ids": target, **labels}),
        "regions": Stream(feats, seen, {"box": box}),
    }


def reference(model: Oscar, row: int) -> Tensor:
    """Hidden states of one row, without padding: caption and tags, then regions."""
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    p, length, num = bert.p, int(TOKENS[row]), int(REGIONS[row])
    ids, segment = given["text"].data[row, :length], given["text"].extra["segment"][row, :length]
    words = (
        p["words.words.weight"][ids] + p["words.positions.weight"][:length] + p["words.types.weight"][segment]
    )
    x1, y1, x2, y2 = given["regions"].extra["box"][row, :num].unbind(-1)
    place = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], -1)
    seen = bert.linear(torch.cat([given["regions"].data[row, :num], place], -1), "regions")
    if "region_norm.weight" in p:
        seen = bert.norm(seen, "region_norm")
    allowed = torch.ones(length + num, dtype=torch.bool)
    if not model.config.tags:
        allowed[:length] = segment == 0
    x = torch.cat([bert.norm(words, "words.norm"), seen])
    return bert.encoder(x, allowed[None].expand(length + num, -1))


@pytest.mark.parametrize("changes", [{}, {"region_norm": True}, {"tags": False}])
def test_hidden_states(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    fused = outputs(model, **streams()).fused
    for row in range(5):
        length, num = TOKENS[row], REGIONS[row]
        found = torch.cat([fused["text"][row, :length], fused["regions"][row, :num]])
        torch.testing.assert_close(found, reference(model, row), **TOLERANCE)


@pytest.mark.parametrize("contrast", [2, 3])
def test_losses_and_gradients(contrast: int) -> None:
    """L = masked tokens of caption and tags + -log p(y | [CLS]), both of all rows, polluted ones too."""
    model = model_of(contrast=contrast)
    bert, given = SecondBert(model, width=24, heads=3, layers=2), streams()
    labels = given["text"].target["match" if contrast == 2 else "polluted"]
    words, contrasts = [], []
    for row in range(5):
        hidden, target = reference(model, row), given["text"].target["ids"][row]
        pooled = torch.tanh(bert.linear(hidden[0], "pooler.dense"))
        contrasts.append(-bert.linear(pooled, "contrast_head").log_softmax(-1)[labels[row]])
        for at in (target != IGNORE).nonzero()[:, 0].tolist():
            words.append(-bert.word_logits(hidden[at]).log_softmax(-1)[target[at]])
    wanted = torch.stack(words).mean() + torch.stack(contrasts).mean()
    out = outputs(model, **given)
    second: Any = Match() if contrast == 2 else Polluted()
    terms = [MaskedLm()(out)["mlm"], second(out)[second.LOSSES[0]]]
    found = sum((term.total / term.count for term in terms), torch.zeros(()))  # type: ignore[union-attr]
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    gradients_agree(model, found, wanted)


def test_three_classes_as_two() -> None:
    """p(match) of Oscar+ is p(right): the two wrong classes are one."""
    model = model_of(contrast=3)
    out = outputs(model, **streams())
    torch.testing.assert_close(out.match.softmax(1)[:, 1], out.polluted.softmax(1)[:, 0])
    assert missing(model, [Matches, TellsPolluted]) == []
    two = model_of()
    assert missing(two, [Matches, TellsPolluted]) == [TellsPolluted]
    with pytest.raises(ValueError, match="set contrast: 3"):
        two.polluted(outputs(two, **streams()))
    with pytest.raises(ValueError, match="contrast must be 2 or 3, got 4"):
        model_of(contrast=4)


def test_hidden_tags_change_nothing() -> None:
    model, given = model_of(tags=False), streams()
    other = given["text"].data.clone()
    tags = given["text"].extra["segment"] == 1
    other[tags] = (other[tags] + 5) % 37
    changed = {**given, "text": Stream(other, given["text"].mask, given["text"].extra)}
    torch.testing.assert_close(outputs(model, **given).match, outputs(model, **changed).match)
    torch.testing.assert_close(
        outputs(model_of(), **given).match.isclose(outputs(model_of(), **changed).match).any(),
        torch.tensor(False),
    )
