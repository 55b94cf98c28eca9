"""UNIMO against a second implementation, row by row from the paper's formulas: outputs, losses, gradients, masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_regions import Parts
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.pairs.variants import ContrastVariants
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.objectives.region_mse import RegionMse
from vlpipe.models.objectives.texts.next_words import NextWords
from vlpipe.models.systems.regions.unimo import Unimo, prefix_mask

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 8,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "max_text_length": 12,
}
WORDS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])
PREFIX = torch.tensor([3, 1, 5, 2, 4])
LENGTHS = torch.tensor([[5, 4, 3], [4, 6, 0], [3, 3, 2], [6, 0, 0], [2, 5, 4]])  # of texts; 0: not there


@pytest.fixture
def model() -> Unimo:
    torch.manual_seed(0)
    found = noisy(Unimo(**SIZES), but="nothing")
    assert isinstance(found, Unimo)
    return found


def variants(seed: int, positive: list[bool]) -> Stream:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.arange(6) < LENGTHS[..., None]
    ids = torch.randint(1, 37, (5, 3, 6), generator=draw).masked_fill(~tokens, 0)
    extra = {"tokens": tokens, "there": LENGTHS > 0, "positive": torch.tensor(positive).expand(5, 3)}
    return Stream(ids, extra=extra)


def streams(generate: bool) -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(1)
    text_mask, mask = torch.arange(8)[None] < WORDS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 8), generator=draw).masked_fill(~text_mask, 0)
    chosen = (torch.rand(5, 8, generator=draw) < 0.4) & text_mask
    target = {"ids": ids.masked_fill(~chosen, IGNORE)}
    if generate:
        at = torch.arange(8)[None]
        later = (at >= PREFIX[:, None] - 1) & (at < WORDS[:, None] - 1)
        target = {"prefix": PREFIX, "rest": ids.roll(-1, 1).masked_fill(~later, IGNORE)}
    feats, corners = torch.randn(5, 4, 10, generator=draw), torch.rand(5, 4, 4, generator=draw)
    corners = torch.cat([corners[..., :2] / 2, corners[..., :2] / 2 + corners[..., 2:] / 2], -1)
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & mask
    masked[0] = torch.tensor([True, False, True, False])
    prob = torch.rand(5, 4, 8, generator=draw).softmax(-1)
    data = feats.masked_fill(masked[..., None], 0) * mask[..., None]
    return {
        "text": Stream(ids, text_mask, target=target),
        "regions": Stream(data, mask, {"box": corners, "prob": prob}, {"masked": masked, "feat": feats}),
        "variants": variants(2, [True, True, False]),
        "retrieved": variants(3, [True, True, True]),
    }


class Reference(Parts):
    """The formulas, on the model's parameters, for one row without padding."""

    def __init__(self, model: Unimo, given: dict[str, Stream]) -> None:
        super().__init__(model)
        self.given = given

    def gelu(self, x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def image(self, row: int) -> Tensor:
        regions, num = self.given["regions"], int(REGIONS[row])
        feats, corners = regions.data[row, :num], regions.extra["box"][row, :num].tolist()
        left = [feats[k] for k in range(num) if not regions.target["masked"][row, k]]
        whole = sum(left) / len(left) if left else torch.zeros(10)
        places = [[0.0, 0.0, 1.0, 1.0, 1.0]] + [[*c, (c[2] - c[0]) * (c[3] - c[1])] for c in corners]
        x = self.linear(torch.stack([whole, *feats]), "regions.feat")  # type: ignore[list-item]
        return self.norm(x + self.linear(torch.tensor(places), "regions.box"), "regions.norm")

    def text(self, ids: Tensor) -> Tensor:
        x = self.p["words.words.weight"][ids] + self.p["words.positions.weight"][: len(ids)]
        return self.norm(x, "words.norm")

    def encoded(self, x: Tensor, num_words: int = 0, prefix: int | None = None) -> Tensor:
        """Each query attends to the keys it may see, one by one."""
        for layer in range(2):
            name = f"blocks.{layer}"
            q, k, v = (part.chunk(3, -1) for part in self.linear(x, f"{name}.attention.qkv").chunk(3, -1))
            rows = []
            for i in range(len(x)):
                may = [j for j in range(len(x)) if self.sees(i, j, num_words, prefix)]
                heads = []
                for h in range(3):
                    weights = (k[h][may] @ q[h][i] / math.sqrt(8)).softmax(0)
                    heads.append(weights @ v[h][may])
                rows.append(torch.cat(heads))
            mixed = self.linear(torch.stack(rows), f"{name}.attention.out")
            x = self.norm(x + mixed, f"{name}.attention.norm")
            inner = self.gelu(self.linear(x, f"{name}.feed_forward.up"))
            x = self.norm(x + self.linear(inner, f"{name}.feed_forward.down"), f"{name}.feed_forward.norm")
        return x

    @staticmethod
    def sees(i: int, j: int, num_words: int, prefix: int | None) -> bool:
        if prefix is None or j >= num_words or j < prefix:
            return True
        return i < num_words and i >= j

    def transform(self, x: Tensor, name: str) -> Tensor:
        return self.norm(self.gelu(self.linear(x, f"{name}.dense")), f"{name}.norm")

    def pair(self, row: int) -> tuple[Tensor, Tensor]:
        text, num = self.given["text"], int(WORDS[row])
        prefix = int(PREFIX[row]) if "prefix" in text.target else None
        x = torch.cat([self.text(text.data[row, :num]), self.image(row)])
        x = self.encoded(x, num, prefix)
        return x[:num], x[num:]

    def words_loss(self, target: str) -> Tensor:
        total = torch.zeros(())
        for row in range(5):
            for at, true in enumerate(self.given["text"].target[target][row, : WORDS[row]].tolist()):
                if true != IGNORE:
                    hidden = self.transform(self.pair(row)[0][at], "word_transform")
                    logits = hidden @ self.p["words.words.weight"].T + self.p["word_bias"]
                    total = total + logits.logsumexp(0) - logits[true]
        return total

    def region_losses(self) -> tuple[Tensor, Tensor]:
        square, kl, regions = torch.zeros(()), torch.zeros(()), self.given["regions"]
        for row in range(5):
            image = self.pair(row)[1][1:]
            for at in range(int(REGIONS[row])):
                if regions.target["masked"][row, at]:
                    feat = self.linear(self.transform(image[at], "feat_head.0"), "feat_head.1")
                    square = square + (feat - regions.target["feat"][row, at]).square().mean()
                    p = self.linear(self.transform(image[at], "obj_head.0"), "obj_head.1").softmax(0)
                    q = regions.extra["prob"][row, at]
                    kl = kl + (q * (q / p).log()).sum()
        return square, kl

    def contrast(self, same: list[int]) -> Tensor:
        alone = [self.unit(self.encoded(self.image(row))[0]) for row in range(5)]
        found = {
            (j, k): self.unit(self.encoded(self.text(self.given["retrieved"].data[j, k, : LENGTHS[j, k]]))[0])
            for j in range(5)
            for k in range(3)
            if LENGTHS[j, k]
        }
        total = torch.zeros(())
        for row in range(5):
            pairs = []
            for k in range(3):
                if LENGTHS[row, k]:
                    ids = self.given["variants"].data[row, k, : LENGTHS[row, k]]
                    x = self.encoded(torch.cat([self.text(ids), self.image(row)]))
                    score = self.linear(torch.cat([x[0], x[len(ids)]]), "score")[0]
                    pairs.append((score, k < 2))
            for (j, _), text in found.items():
                if j == row or same[j] != same[row]:
                    pairs.append((alone[row] @ text, j == row))
            every = sum((score / 0.1).exp() for score, _ in pairs)
            good = sum((score / 0.1).exp() for score, is_good in pairs if is_good)
            total = total - (good / every).log()  # type: ignore[operator, union-attr]
        return total

    @staticmethod
    def unit(x: Tensor) -> Tensor:
        return x / x.square().sum().sqrt()


@pytest.mark.parametrize("generate", [False, True])
def test_hidden_states_and_losses_of_pairs(model: Unimo, generate: bool) -> None:
    given = streams(generate)
    out, reference = outputs(model, **given), Reference(model, given)
    for row in range(5):
        words, image = reference.pair(row)
        torch.testing.assert_close(out.fused["text"][row, : WORDS[row]], words, **TOLERANCE)
        torch.testing.assert_close(out.fused["regions"][row, : REGIONS[row]], image[1:], **TOLERANCE)
    objective, target = (NextWords(), "rest") if generate else (MaskedLm(), "ids")
    term = objective(out)[objective.LOSSES[0]]
    assert int(term.count) == int((given["text"].target[target] != IGNORE).sum()) > 0  # type: ignore[union-attr]
    square, kl = reference.region_losses()
    found = [term.total, RegionMse()(out)["region_mse"].total, RegionKl()(out)["region_kl"].total]  # type: ignore[union-attr]
    compare(model, found, [reference.words_loss(target), square, kl])


def test_the_contrast(model: Unimo) -> None:
    given, same = streams(False), [4, 5, 4, 6, 7]
    out = Outputs(model, Batch(streams=given, same=torch.tensor(same)))
    found = ContrastVariants()(out)["cmcl"]
    compare(model, [found.total], [Reference(model, given).contrast(same)])  # type: ignore[union-attr]


def compare(model: Unimo, found: list[Tensor], wanted: list[Tensor]) -> None:
    """Values, and gradients by all parameters."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(torch.stack(losses).sum(), list(model.parameters()), allow_unused=True)
        for losses in (found, wanted)
    )
    for (name, parameter), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        zero = torch.zeros_like(parameter)
        pair = (zero if g is None else g for g in (one, other))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4, msg=name)


def test_the_mask_entry_by_entry() -> None:
    """Two given words, two generated ones, then the whole image and a region."""
    given, first, second = [1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]
    wanted = torch.tensor([given, given, first, second, given, given], dtype=torch.bool)
    assert torch.equal(prefix_mask(torch.tensor([2]), 4, 6)[0, 0], wanted)


def test_a_text_or_an_image_alone(model: Unimo) -> None:
    given = streams(False)
    text, regions = outputs(model, text=given["text"]), outputs(model, regions=given["regions"])
    reference = Reference(model, given)
    for row in range(5):
        words = reference.encoded(reference.text(given["text"].data[row, : WORDS[row]]))
        torch.testing.assert_close(text.fused["text"][row, : WORDS[row]], words, **TOLERANCE)
        torch.testing.assert_close(text.text_feat[row], reference.unit(words[0]), **TOLERANCE)
        image = reference.encoded(reference.image(row))
        torch.testing.assert_close(regions.fused["regions"][row, : REGIONS[row]], image[1:], **TOLERANCE)
        torch.testing.assert_close(regions.image_feat[row], reference.unit(image[0]), **TOLERANCE)
    assert (list(text.fused), list(regions.fused)) == (["text"], ["regions"])


def test_a_model_without_contrast_reads_no_variants() -> None:
    model = Unimo(**SIZES, contrast=False)
    assert list(model.streams()) == ["text", "regions"]
    assert all(model.lacks(need) for need in ContrastVariants.NEEDS)
    with pytest.raises(ValueError, match="predicts features and objects of regions, not 'attr'"):
        model.predict_regions(torch.zeros(1, 24), "attr")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ContrastVariants(temperature=0)


def test_cosines_are_exact_under_autocast(model: Unimo) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = outputs(model, **streams(generate=False))
        cosines = out.retrieved_cosines
        own = out.image_feat
        text = model.text_feat(out)
    for feats in (own, text):
        assert feats.dtype == torch.float32
        torch.testing.assert_close(feats.norm(dim=-1), torch.ones(5), atol=1e-5, rtol=0)
    assert cosines.dtype == torch.float32
    assert int((cosines.to(torch.bfloat16).float() == cosines).sum()) < cosines.numel() / 4  # not rounded
