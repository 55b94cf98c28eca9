"""HowTo100M's model and loss against a second implementation, from the paper's formulas clip by clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.narrated import narrated
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.video.max_margin import MaxMargin
from vlpipe.models.systems.video.gated_embeddings import GatedEmbeddings

SIZES: dict[str, Any] = {"vocab_size": 40, "feat_dims": [6, 4], "word_dim": 8, "embed_dim": 12}


def make(**more: Any) -> GatedEmbeddings:
    torch.manual_seed(0)
    return GatedEmbeddings(**{**SIZES, **more})


def gated(x: Tensor, unit: Any) -> Tensor:
    """Equation 1 of the paper, of one vector; then its norm, since scores are cosines."""
    y = unit.fc.weight @ x + unit.fc.bias
    z = y * (1 / (1 + torch.exp(-(unit.gate.weight @ y + unit.gate.bias))))
    return z / z.square().sum().sqrt()


def test_clips_are_pooled_gated_and_normalised() -> None:
    model, batch = make(), narrated(0)
    feats = Outputs(model, batch).clip_feat
    video = batch.stream("video")
    windows = video.data[3, 1][video.mask[3, 1]]  # type: ignore[index]
    parts = [windows[:, :6].amax(0), windows[:, 6:].amax(0)]
    pooled = torch.cat([part / part.norm() for part in parts])
    torch.testing.assert_close(feats[3, 1], gated(pooled, model.video_gate))


def test_texts_are_bags_of_their_words() -> None:
    model, batch = make(), narrated(0)
    ids = batch.stream("text").data[2, 0, 0]
    own = [int(i) for i in ids if i]
    each = [torch.relu(model.text.fc1.weight @ model.text.words.weight[i] + model.text.fc1.bias) for i in own]
    expected = gated(torch.stack(each).amax(0), model.text_gate)
    torch.testing.assert_close(Outputs(model, batch).narration_feat[2, 0, 0], expected)
    counted = make(pad_counts=True)
    each.append(torch.relu(model.text.fc1.weight @ model.text.words.weight[0] + model.text.fc1.bias))
    padded = gated(torch.stack(each).amax(0), counted.text_gate) if len(own) < 5 else expected
    torch.testing.assert_close(Outputs(counted, batch).narration_feat[2, 0, 0], padded)


def test_cosines_are_exact_under_autocast() -> None:
    """bf16 has steps of 0.004 near 1, a twentieth of the margin."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Outputs(make(), narrated(0))
        for feats in (out.clip_feat, out.narration_feat):
            assert feats.dtype == torch.float32
            torch.testing.assert_close(feats.norm(dim=-1), torch.ones(feats.shape[:-1]), atol=1e-5, rtol=0)


def test_word_vectors_are_frozen_unless_asked() -> None:
    assert not make().text.words.weight.requires_grad
    assert make(freeze_words=False).text.words.weight.requires_grad


def test_other_features_are_an_error() -> None:
    with pytest.raises(ValueError, match="features have 10 values, feat_dims are"):
        _ = Outputs(make(feat_dims=[6, 6]), narrated(0)).clip_feat


class Given:
    """A model whose outputs are given."""

    def __init__(self, clips: Tensor, texts: Tensor) -> None:
        self.clips, self.texts = clips, texts

    def clip_feat(self, out: Outputs) -> Tensor:
        return self.clips

    def narration_feat(self, out: Outputs) -> Tensor:
        return self.texts


def given(rows: int, per_row: int, seed: int = 0) -> tuple[Given, Batch]:
    torch.manual_seed(seed)
    clips = torch.randn(rows, per_row, 5, requires_grad=True)
    texts = torch.randn(rows, per_row, 1, 5, requires_grad=True)
    text = Stream(torch.ones(rows, per_row, 1, 2, dtype=torch.long))
    return Given(clips, texts), Batch({"text": text}, same=torch.arange(rows))


def by_the_paper(model: Given, margin: float, p: float) -> Tensor:
    """Equation 3 with the weights of appendix B, divided by their sum per clip."""
    v, k = model.clips.shape[:2]
    clips, texts = model.clips.flatten(0, 1), model.texts.flatten(0, 2)
    zero, total = torch.zeros(()), torch.zeros(())
    for i in range(v * k):
        for j in range(v * k):
            if i == j:
                continue
            weight = p * k * (v - 1) / ((1 - p) * (k - 1)) if i // k == j // k else 1.0
            own = clips[i] @ texts[i]
            one = torch.maximum(zero, margin + clips[j] @ texts[i] - own)
            two = torch.maximum(zero, margin + clips[i] @ texts[j] - own)
            total = total + weight * (one + two) / (k * (v - 1) / (1 - p))
    return total / (v * k)


@pytest.mark.parametrize(("p", "margin"), [(0.5, 0.1), (0.2, 1.0)])
def test_the_loss_is_the_papers(p: float, margin: float) -> None:
    model, batch = given(3, 4)
    term = MaxMargin(margin=margin, intra_rate=p)(Outputs(model, batch))["max_margin"]
    expected = by_the_paper(model, margin, p)
    torch.testing.assert_close(term.total / term.count, expected)
    ours = torch.autograd.grad(term.total / term.count, [model.clips, model.texts])
    for own, other in zip(ours, torch.autograd.grad(expected, [model.clips, model.texts]), strict=True):
        torch.testing.assert_close(own, other)


def as_released(model: Given, margin: float, h: float) -> Tensor:
    """video.md's reading of the code: the weighted mean over all pairs, i with itself too."""
    v, k = model.clips.shape[:2]
    s = model.texts.flatten(0, 2) @ model.clips.flatten(0, 1).t()
    d = s.diagonal()
    cost = (margin + s - d[:, None]).clamp(min=0) + (margin + s - d[None]).clamp(min=0)
    blocks = torch.block_diag(*[torch.ones(k, k)] * v)
    return (cost * torch.where(blocks > 0, v * h, v * (1 - h) / (v - 1))).mean()


def test_as_released_it_is_the_codes() -> None:
    model, batch = given(3, 4)
    term = MaxMargin(margin=0.3, intra_rate=0.4, as_released=True)(Outputs(model, batch))["max_margin"]
    expected = as_released(model, 0.3, 0.4)
    torch.testing.assert_close(term.total / term.count, expected)
    ours = torch.autograd.grad(term.total, [model.clips, model.texts])
    for own, other in zip(ours, torch.autograd.grad(expected * 3, [model.clips, model.texts]), strict=True):
        torch.testing.assert_close(own, other)


def test_as_released_one_clip_per_video_has_equal_weights() -> None:
    """The code weighs negatives if videos have several clips, and takes the plain mean over all pairs if not."""
    model, batch = given(4, 1)
    term = MaxMargin(margin=0.3, intra_rate=0.4, as_released=True)(Outputs(model, batch))["max_margin"]
    s = model.texts.flatten(0, 2) @ model.clips.flatten(0, 1).t()
    d = s.diagonal()
    cost = (0.3 + s - d[:, None]).clamp(min=0) + (0.3 + s - d[None]).clamp(min=0)
    torch.testing.assert_close(term.total / term.count, cost.mean())


def test_one_clip_per_video_has_negatives_of_others_alone() -> None:
    model, batch = given(4, 1)
    loss = MaxMargin(margin=0.1)(Outputs(model, batch))["max_margin"].total / 4
    s, zero, expected = model.texts.flatten(0, 2) @ model.clips.flatten(0, 1).t(), torch.zeros(()), []
    for i in range(4):
        costs = [torch.maximum(zero, 0.1 + s[i, j] - s[i, i]) for j in range(4) if j != i]
        costs += [torch.maximum(zero, 0.1 + s[j, i] - s[i, i]) for j in range(4) if j != i]
        expected.append(sum(costs, zero) / 3)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_rows_of_the_same_video_are_one_video() -> None:
    same = torch.tensor([0, 0, 1, 1])
    weights = MaxMargin(intra_rate=0.7)._weights(same, same, 1)
    assert weights[0].tolist() == pytest.approx([0, 0.7, 0.15, 0.15])
    assert weights[3].tolist() == pytest.approx([0.15, 0.15, 0.7, 0])
