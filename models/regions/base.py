"""Bases of systems that read words and a detector's regions, and predict what is masked from their hidden states.

A base has no parameters of its own. A subclass makes the heads that the methods name, so that the names of its weights
are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import Transform
from vlpipe.models.blocks.text import TextEmbed
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

NAMES = {"feat": "features", "obj": "objects", "attr": "attributes"}  # of kinds of predictions


class RegionModel(Model):
    """Base of systems with the streams `text` and `regions`, and `fused`, their hidden states.

    Its config has `feat_dim`. Words are predicted by `word_head`; without one by `word_transform`, the transpose of the word
    embedding in `words`, and `word_bias`.
    """

    STREAMS = {"text": "text:Text", "regions": "regions:Regions"}  # noqa: RUF012
    words: TextEmbed
    word_head: nn.Module
    word_transform: nn.Module
    word_bias: nn.Parameter

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        specs["regions"]["feat_dim"] = self.config.feat_dim
        return specs

    def word_hidden(self, out: Outputs) -> Tensor:
        """(B, L, width)."""
        found: Tensor = out.fused["text"]
        return found

    def predict_words(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., width)."""
        if hasattr(self, "word_head"):
            found: Tensor = self.word_head(hidden)
            return found
        return F.linear(self.word_transform(hidden), self.words.words.weight, self.word_bias)


class FillsRegions(RegionModel):
    """Base of systems that predict masked regions, kinds in REGION_KINDS: by `obj_head`, `feat_head`, or `region_heads`."""

    REGION_KINDS: ClassVar[Sequence[str]] = ("obj",)
    region_heads: nn.ModuleDict

    def region_hidden(self, out: Outputs) -> Tensor:
        """(B, R, width), without the whole image."""
        found: Tensor = out.fused["regions"]
        return found

    def predict_regions(self, hidden: Tensor, kind: str) -> Tensor:
        """Predictions (..., classes or feat_dim) of hidden states. Raises ValueError for a kind not in REGION_KINDS."""
        if kind not in self.REGION_KINDS:
            known = " and ".join(NAMES[one] for one in self.REGION_KINDS)
            raise ValueError(f"{type(self).__name__} predicts {known} of regions, not {kind!r}")
        found: Tensor = self._region_head(kind)(hidden)
        return found

    def _region_head(self, kind: str) -> nn.Module:
        head = self.region_heads[kind] if hasattr(self, "region_heads") else getattr(self, f"{kind}_head")
        assert isinstance(head, nn.Module)
        return head


class MatchesFirst(RegionModel):
    """Base of systems whose `match_head` reads the pooled first word, [CLS]."""

    pooler: nn.Module
    match_head: nn.Module

    def match(self, out: Outputs) -> Tensor:
        """Logits (B, 2) of [no, yes]."""
        found: Tensor = self.match_head(self.pooler(out.fused["text"]))
        return found


class MatchesBoth(FillsRegions):
    """Base of systems whose `match_head` reads the product of the first word and the whole image, each projected with ReLU
    by `word_pool` and `region_pool`: ViLBERT's released code. The whole image stands before the regions in `fused`.
    """

    word_pool: nn.Module
    region_pool: nn.Module
    match_head: nn.Module

    def pooled(self, out: Outputs) -> Tensor:
        """The product (B, joint width) of the projected first word, [CLS], and whole image."""
        words = F.relu(self.word_pool(out.fused["text"][:, 0]))
        return words * F.relu(self.region_pool(out.fused["regions"][:, 0]))

    def match(self, out: Outputs) -> Tensor:
        """Logits (B, 2) of [no, yes]."""
        found: Tensor = self.match_head(F.dropout(out.pooled, self.config.dropout, self.training))
        return found

    def region_hidden(self, out: Outputs) -> Tensor:
        found: Tensor = out.fused["regions"][:, 1:]
        return found


def class_head(width: int, num: int) -> nn.Sequential:
    """Hidden states (..., width) -> (..., num): BERT's transform and a matrix."""
    return nn.Sequential(Transform(width), nn.Linear(width, num))
