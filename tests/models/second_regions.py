"""Shared by tests of systems of regions: a second implementation of their parts, for one row without padding; and rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.interface.batch import IGNORE, Stream

LENGTHS, NUMS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])
VOCABULARY, FEAT, OBJECTS = 37, 10, 7


class Parts:
    """Layers written from the formulas, by the names of a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.p = dict(model.named_parameters())

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].t() + self.p[f"{name}.bias"]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
        """q (L, D), k and v (N, D), seen (L, N) bool -> (L, D), one head after the other."""
        found, size = [], q.shape[1] // heads
        for h in range(heads):
            part = slice(size * h, size * (h + 1))
            scores = q[:, part] @ k[:, part].t() / size**0.5
            if seen is not None:
                scores = scores.masked_fill(~seen, -torch.inf)
            found.append(scores.softmax(-1) @ v[:, part])
        return torch.cat(found, -1)

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        inner = self.linear(F.gelu(self.linear(x, f"{name}.up")), f"{name}.down")
        return self.norm(x + inner, f"{name}.norm")

    def layer(self, x: Tensor, name: str, heads: int, seen: Tensor | None = None) -> Tensor:
        q, k, v = self.linear(x, f"{name}.attention.qkv").chunk(3, -1)
        mixed = self.linear(self.mix(q, k, v, heads, seen), f"{name}.attention.out")
        return self.feed_forward(self.norm(x + mixed, f"{name}.attention.norm"), f"{name}.feed_forward")

    def words(self, ids: Tensor, name: str = "words") -> Tensor:
        found = self.p[f"{name}.words.weight"][ids] + self.p[f"{name}.positions.weight"][: len(ids)]
        return self.norm(found + self.p[f"{name}.types.weight"][0], f"{name}.norm")

    def regions(self, regions: Stream, row: int, *, whole: bool, added: Tensor | float = 0.0) -> Tensor:
        """The norm of the sum of feature, box with area, and `added`; whole: the mean feature and the whole box first."""
        num = int(NUMS[row])
        feats, (x1, y1, x2, y2) = regions.data[row, :num], regions.extra["box"][row, :num].unbind(-1)
        place = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], -1)
        if whole:
            feats = torch.cat([feats.sum(0, keepdim=True) / num, feats])
            place = torch.cat([torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]]), place])
        found = self.linear(feats, "regions.feat") + self.linear(place, "regions.box") + added
        return self.norm(found, "regions.norm")

    def word_logits(self, x: Tensor) -> Tensor:
        inner = self.norm(F.gelu(self.linear(x, "word_head.dense")), "word_head.norm")
        return inner @ self.p["words.words.weight"].t() + self.p["word_head.decoder.bias"]

    def obj_logits(self, x: Tensor) -> Tensor:
        inner = self.norm(F.gelu(self.linear(x, "obj_head.0.dense")), "obj_head.0.norm")
        return self.linear(inner, "obj_head.1")


def rows() -> tuple[Stream, Stream]:
    """Words and regions of five rows of different lengths, as the corruptors leave them; three of them are mismatched."""
    draw = torch.Generator().manual_seed(1)
    text_mask, mask = torch.arange(8)[None] < LENGTHS[:, None], torch.arange(4)[None] < NUMS[:, None]
    ids = torch.randint(1, VOCABULARY, (5, 8), generator=draw).masked_fill(~text_mask, 0)
    chosen = (torch.rand(5, 8, generator=draw) < 0.5) & text_mask
    target = {"ids": ids.masked_fill(~chosen, IGNORE), "match": torch.tensor([1, 0, 1, 0, 0])}
    feats, corners = torch.randn(5, 4, FEAT, generator=draw), torch.rand(5, 4, 4, generator=draw) / 2
    box = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & mask
    masked[:, 0] = True
    prob = torch.rand(5, 4, OBJECTS, generator=draw).square()
    extra = {
        "box": box,
        "obj": torch.randint(0, OBJECTS, (5, 4), generator=draw),
        "obj_conf": torch.rand(5, 4, generator=draw),
        "prob": prob / prob.sum(-1, keepdim=True),
    }
    data = feats.masked_fill(masked[..., None], 0) * mask[..., None]
    return Stream(ids, text_mask, target=target), Stream(data, mask, extra, {"masked": masked, "feat": feats})


def same_gradients(model: nn.Module, found: Tensor, wanted: Tensor) -> int:
    """Asserts that two losses and their gradients by all parameters are the same; returns the number that have one."""
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    names, params = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(found, params, retain_graph=True, allow_unused=True)
    expected = torch.autograd.grad(wanted, params, allow_unused=True)
    num = 0
    for name, own, other in zip(names, got, expected, strict=True):
        assert (own is None) == (other is None), name
        if own is not None and other is not None:
            num += 1
            scale = max(float(other.abs().max()), 1.0)
            assert torch.allclose(own, other, rtol=0, atol=1e-5 * scale), name
    return num
