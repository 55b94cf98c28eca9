"""MIL-NCE against a second implementation, from the paper's formula pair by pair, and its closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.models.narrated import narrated
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.video.mil_nce import MilNce
from vlpipe.models.systems.video.mil_nce import MilNceModel


def model_of(**more: object) -> MilNceModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "feat_dim": 10, "embed_dim": 6, "word_dim": 8, "text_width": 12, **more}
    return MilNceModel(**sizes)  # type: ignore[arg-type]


def by_the_paper(clips: Tensor, texts: Tensor, there: Tensor, twice: bool) -> Tensor:
    """Equation 1: clips (C, E), texts (C, K, E), there (C, K) which candidates exist."""
    losses = []
    for i in range(len(clips)):
        positives = [clips[i] @ texts[i, k] for k in range(texts.shape[1]) if there[i, k]]
        negatives = []
        for j in range(len(clips)):
            if j != i:
                negatives += [clips[i] @ texts[j, k] for k in range(texts.shape[1]) if there[j, k]]
                negatives += [clips[j] @ texts[i, k] for k in range(texts.shape[1]) if there[i, k]]
        good = torch.stack(positives).exp().sum()
        bad = torch.stack(negatives).exp().sum() if negatives else torch.zeros(())
        losses.append(-(good / ((2 if twice else 1) * good + bad)).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("clips", [1, 2])
def test_the_loss_is_the_papers(clips: int, twice: bool) -> None:
    model, batch = model_of(), narrated(0, clips=clips, texts=3)
    out = Outputs(model, batch)
    term = MilNce(as_released=twice)(out)["mil_nce"]
    there = batch.stream("text").mask.any(-1).flatten(0, 1)  # type: ignore[union-attr]
    assert not there.all()
    expected = by_the_paper(out.clip_feat.flatten(0, 1), out.narration_feat.flatten(0, 1), there, twice)
    torch.testing.assert_close(term.total / term.count, expected)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(term.total / term.count, parameters, retain_graph=True)
    for own, other in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(own, other)


def test_one_sample_is_log_2_as_released_and_0_in_the_paper() -> None:
    out = Outputs(model_of(), narrated(3, rows=1, clips=1, texts=4))
    assert MilNce(as_released=True)(out)["mil_nce"].total.item() == pytest.approx(math.log(2), abs=1e-6)
    assert MilNce()(out)["mil_nce"].total.item() == pytest.approx(0, abs=1e-6)


def test_equal_scores_count_pairs() -> None:
    """B clips with K candidates each: K of K + 2 K (B - 1) pairs, and of that plus K as released, are positive."""
    batch = narrated(0, rows=5, clips=1, texts=3)
    words = Stream(torch.ones_like(batch.stream("text").data), torch.ones(5, 1, 3, 5, dtype=torch.bool))
    model = model_of()
    torch.nn.init.zeros_(model.video.weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.video.bias)  # type: ignore[arg-type]
    out = Outputs(model, Batch({**batch.streams, "text": words}, same=batch.same))
    assert MilNce()(out)["mil_nce"].total.item() / 5 == pytest.approx(math.log(9), abs=1e-5)
    assert MilNce(as_released=True)(out)["mil_nce"].total.item() / 5 == pytest.approx(math.log(10), abs=1e-5)


def test_a_clip_without_any_known_word_does_not_spoil_the_loss() -> None:
    batch = narrated(0, clips=1, texts=2)
    mask = batch.stream("text").mask.clone()  # type: ignore[union-attr]
    mask[2] = False
    silent = Batch({**batch.streams, "text": Stream(batch.stream("text").data, mask)}, same=batch.same)
    assert MilNce()(Outputs(model_of(), silent))["mil_nce"].total.isfinite()


def test_it_learns_which_of_several_texts_is_the_clips() -> None:
    """Each clip's true text is one of three candidates, the others being noise."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    feats, model = torch.eye(10)[:, None, None], model_of(text_width=64)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        ids = torch.randint(15, 39, (10, 1, 3, 2), generator=draw)
        ids[torch.arange(10), 0, torch.randint(0, 3, (10,), generator=draw), 0] = torch.arange(1, 11)
        text = Stream(ids, torch.ones_like(ids, dtype=torch.bool))
        loss = MilNce()(Outputs(model, Batch({"video": Stream(feats), "text": text}, torch.arange(10))))[
            "mil_nce"
        ]
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    alone = torch.arange(1, 11)[:, None, None, None]
    out = Outputs(model, Batch({"video": Stream(feats), "text": Stream(alone)}, torch.arange(10)), grad=False)
    scores = out.clip_feat[:, 0] @ out.narration_feat[:, 0, 0].t()
    assert (scores.argmax(1) == torch.arange(10)).float().mean() > 0.8
