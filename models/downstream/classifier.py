"""Answers as classes: visual question answering with a closed set, visual entailment, statements about two images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.downstream.joint import SECOND, AnswerHead, JointModel
from vlpipe.models.interface.outputs import Outputs


class JointClassifier(JointModel):
    """Logits (B, num_answers) of the joint vector of a text and its image.

    num_images: 2 for statements about a pair of images (NLVR2): the text is read with each of them, and the head reads both
    vectors one after the other, as in LXMERT, ViLT and UNITER's "pair". The streams of the second image have the names of
    the first's, with `second_` before them. Suhr et al. 2019 (NLVR2), https://arxiv.org/abs/1811.00491.
    """

    def __init__(
        self,
        *,
        base: Mapping[str, Any],
        num_answers: int,
        num_images: int = 1,
        tokens: Mapping[str, int] | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__(base=base, tokens=tokens, blind=blind)
        if num_images not in (1, 2):
            raise ValueError(f"num_images must be 1 or 2, got {num_images}")
        self.num_images = num_images
        width = num_images * self.joint_width
        self.head = AnswerHead(width, 2 * self.joint_width, num_answers)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        if self.num_images == 2:
            for name in self.seen:
                module, _, cls = specs[name]["use"].partition(":")
                specs[SECOND + name] = {**specs[name], "use": f"second_{module}:Second{cls}"}
        specs["answer"] = {"use": "answer:Answer", "num_answers": self.config.num_answers}
        return specs

    def answer(self, out: Outputs) -> Tensor:
        """Logits (B, num_answers)."""
        text, vectors = out.stream("text"), []
        for prefix in ("", SECOND)[: self.num_images]:
            images = {name: out.stream(prefix + name) for name in self.seen}
            vectors.append(self.joint({"text": text, **images}, out.batch.same))
        found: Tensor = self.head(torch.cat(vectors, dim=1))
        return found
