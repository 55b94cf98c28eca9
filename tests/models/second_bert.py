"""A second implementation of BERT's layers from the paper's formulas, on the parameters of a model by name."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SecondBert:
    """width, heads, layers: of the encoder; its parameters are `blocks.N. ...`."""

    def __init__(self, model: nn.Module, *, width: int, heads: int, layers: int) -> None:
        self.p = dict(model.named_parameters())
        self.width, self.heads, self.layers = width, heads, layers

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].t() + self.p[f"{name}.bias"]

    def encoder(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """x: (L, width), one row without padding. allowed: (L, L) bool, who may look at whom; None for all."""
        hidden = torch.zeros(len(x), len(x))
        if allowed is not None:
            hidden = hidden.masked_fill(~allowed, -math.inf)
        size = self.width // self.heads
        for i in range(self.layers):
            q, k, v = self.linear(x, f"blocks.{i}.attention.qkv").split(self.width, -1)
            mixed = []
            for h in range(self.heads):
                part = slice(size * h, size * (h + 1))
                mixed.append((q[:, part] @ k[:, part].t() / size**0.5 + hidden).softmax(-1) @ v[:, part])
            out = self.linear(torch.cat(mixed, -1), f"blocks.{i}.attention.out")
            x = self.norm(x + out, f"blocks.{i}.attention.norm")
            inner = F.gelu(self.linear(x, f"blocks.{i}.feed_forward.up"))
            x = self.norm(
                x + self.linear(inner, f"blocks.{i}.feed_forward.down"), f"blocks.{i}.feed_forward.norm"
            )
        return x

    def transformed(self, x: Tensor, name: str) -> Tensor:
        """BERT's head before its output matrix."""
        return self.norm(F.gelu(self.linear(x, f"{name}.dense")), f"{name}.norm")

    def word_logits(self, x: Tensor) -> Tensor:
        return self.transformed(x, "word_transform") @ self.p["words.words.weight"].t() + self.p["word_bias"]


def gradients_agree(model: Any, found: Tensor, wanted: Tensor, *, unused: tuple[str, ...] = ()) -> None:
    """Compares the gradients of two losses by all parameters, to 1e-5 of the largest of each parameter.

    unused: parameters that neither loss reaches.
    """
    names, values = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(found, values, allow_unused=True)
    theirs = torch.autograd.grad(wanted, values, allow_unused=True)
    for name, a, b in zip(names, ours, theirs, strict=True):
        if a is None:
            assert b is None, name
            assert name.startswith(unused), f"{name} has no gradient"
            continue
        assert b is not None, name
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}")
