"""CBT's losses against a second implementation from the paper's formulas, closed forms, and what each part sees."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.small.cbt import SYSTEM
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.video.cross_nce import CrossNce
from vlpipe.models.objectives.video.frame_nce import FrameNce
from vlpipe.models.systems.video.cbt import Cbt

HEADS = 2


def model_of(**more: Any) -> Cbt:
    torch.manual_seed(0)
    return Cbt(**{**vars(SYSTEM.make().config), "init_std": 0.2, **more}).eval()


def norm(x: Tensor, by: Any) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + by.eps).sqrt() * by.weight + by.bias


def layer(x: Tensor, block: Any) -> Tensor:
    """BERT's layer of one sequence (L, width) without padding: Devlin et al. 2019, Vaswani et al. 2017."""
    att, size = block.attention, x.shape[1] // HEADS
    q, k, v = (x @ att.qkv.weight.t() + att.qkv.bias).chunk(3, dim=1)
    heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    mixed = torch.cat([(q[:, h] @ k[:, h].t() / size**0.5).softmax(1) @ v[:, h] for h in heads], dim=1)
    x = norm(x + mixed @ att.out.weight.t() + att.out.bias, att.norm)
    mlp = block.feed_forward
    inner = x @ mlp.up.weight.t() + mlp.up.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return norm(x + inner @ mlp.down.weight.t() + mlp.down.bias, mlp.norm)


def watched(model: Cbt, feats: Tensor) -> Tensor:
    """States (T, width) of windows (T, D), masked ones being zero."""
    video = model.video
    x = feats @ video.proj.weight.t() + video.proj.bias + video.positions.weight[: len(feats)]
    x = norm(x, video.norm)
    for block in video.blocks:
        x = layer(x, block)
    return x


def read(model: Cbt, ids: Tensor) -> Tensor:
    """States (L, width) of the words."""
    embed = model.text.embed
    x = norm(embed.words.weight[ids] + embed.positions.weight[: len(ids)] + embed.types.weight[0], embed.norm)
    for block in model.text.blocks:
        x = layer(x, block)
    return x


def score(model: Cbt, words: Tensor, windows: Tensor) -> Tensor:
    """log MI of a text and a clip."""
    cross = model.cross
    places = torch.cat([torch.arange(len(words)), 12 + torch.arange(len(windows))])  # 12: the longest text
    x = torch.cat([words + cross.types.weight[0], windows + cross.types.weight[1]])
    x = norm(x + cross.positions.weight[places], cross.norm)
    for block in cross.blocks:
        x = layer(x, block)
    hidden = torch.relu(x[0] @ model.pair_hidden.weight.t() + model.pair_hidden.bias)
    return hidden @ model.pair_head.weight[0] + model.pair_head.bias[0]


def gradients_agree(model: Cbt, one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = [torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (one, two)]
    for own, other in zip(*found, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def clips_of(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The windows of each clip as the model reads them, and as they were before masking, without padding."""
    video = batch.stream("video")
    assert video.mask is not None
    real = [video.mask[b, 0] for b in range(len(batch))]
    return [(video.data[b, 0][m], video.target["feat"][b, 0][m]) for b, m in enumerate(real)]


def test_a_masked_window_is_told_from_all_windows_of_the_batch() -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    term = FrameNce()(Outputs(model, batch))["cmfm"]
    clips, losses = clips_of(batch), []
    for given, true in clips:
        said = (
            model.frame_head.weight @ watched(model, given)[0] + model.frame_head.bias
        )  # window 0 is masked
        same = (true[0] @ said).exp()
        others = [(e @ said).exp() for _, feats in clips for e in feats if e is not true[0]]
        total = torch.stack(others).sum()  # the window itself is one of them
        losses.append(-(same / total).log())
    assert float(term.count) == 4
    gradients_agree(model, term.total, torch.stack(losses).sum())


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_clip_is_told_which_text_is_its_own(chunk: int) -> None:
    model, batch = model_of(), SYSTEM.batch(1)
    term = CrossNce(chunk=chunk)(Outputs(model, batch))["cross"]
    texts = [read(model, ids) for ids in batch.stream("text").data]
    losses = []
    for i, (given, _) in enumerate(clips_of(batch)):
        windows = watched(model, given)
        mi = torch.stack([score(model, words, windows) for words in texts]).exp()
        losses.append(-(mi[i] / (mi[i] + mi[torch.arange(4) != i].sum())).log())
    gradients_agree(model, term.total, torch.stack(losses).sum())


def test_closed_forms() -> None:
    """Equal scores: the log of the number of texts, or of real windows; one text alone: 0."""
    model, batch = model_of(), SYSTEM.batch(0)
    for part in (model.pair_head, model.frame_head):
        torch.nn.init.zeros_(part.weight)
    out = Outputs(model, batch)
    assert CrossNce()(out)["cross"].total.item() / 4 == pytest.approx(math.log(4), abs=1e-5)
    num = int(batch.stream("video").mask.sum())  # type: ignore[union-attr]
    assert FrameNce()(out)["cmfm"].total.item() / 4 == pytest.approx(math.log(num), abs=1e-5)
    alone = Outputs(model_of(), batch.rows(slice(0, 1)))
    assert CrossNce()(alone)["cross"].total.item() == 0
    # a right score that is higher than the three others by log 3 has half of the sum
    scores = torch.full((4, 4), 0.5) + math.log(3) * torch.eye(4)
    given = Scored(scores)
    assert CrossNce(chunk=2)(Outputs(given, batch))["cross"].total.item() / 4 == pytest.approx(math.log(2))


class Scored:
    """Scores of texts and clips that are given."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def pair_score(self, out: Outputs) -> Tensor:
        return self.scores[out._rows["text"], out._rows["video"]]


def test_scores_of_clips_are_compared_among_texts() -> None:
    """The other way round is UniVL's alignment; the two differ where scores are not symmetrical."""
    batch = SYSTEM.batch(0)
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    total = CrossNce()(Outputs(Scored(scores), batch))["cross"].total
    torch.testing.assert_close(total, -scores.t().log_softmax(1).diagonal().sum())
    assert not torch.allclose(total, -scores.log_softmax(1).diagonal().sum())


def test_padding_changes_nothing() -> None:
    model, batch = model_of(), SYSTEM.batch(0)
    video = batch.stream("video")
    noise = torch.where(video.mask[..., None], video.data, 7.0)  # type: ignore[index]
    other = replace(batch, streams={**batch.streams, "video": replace(video, data=noise)})
    with torch.no_grad():
        one, two = Outputs(model, batch), Outputs(model, other)
        torch.testing.assert_close(one.clip_state, two.clip_state)
        torch.testing.assert_close(one.pair_score, two.pair_score)


def test_bert_stays_as_it_is_unless_asked() -> None:
    model = model_of(dropout=0.5).train()
    assert not any(p.requires_grad for p in model.text.parameters())
    out = [Outputs(model, SYSTEM.batch(0)).text_tokens for _ in range(2)]
    assert torch.equal(*out)  # no dropout
    trained = model_of(dropout=0.5, train_text=True).train()
    assert all(p.requires_grad for p in trained.text.parameters())


def test_more_windows_than_positions_are_an_error() -> None:
    video = Stream(torch.zeros(2, 1, 5, 10))
    with pytest.raises(ValueError, match="video: 5 windows, but the model has 4 positions"):
        _ = Outputs(model_of(), Batch({"video": video}, torch.arange(2))).video_tokens
