"""Contrast with rewritten and retrieved texts. Li et al. 2021 (UNIMO), https://arxiv.org/abs/2012.15409, section 2.3."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class ScoresVariants(Protocol):
    """Scores texts of a sample: (B, K) with its image in sight, of the stream `variants`; cosines (B, B, R) of each image
    alone and all samples' retrieved texts alone.
    """

    def variant_scores(self, out: Outputs) -> Tensor: ...
    def retrieved_cosines(self, out: Outputs) -> Tensor: ...


class ContrastVariants(Objective):
    """`cmcl`: -log of the share of positives in the sum of exp(score / temperature) of all candidates, nats per sample.

    Candidates are a sample's variants: its text and rewrites that say the same (positive), false rewrites (negative);
    and retrieved texts: its own (positive), and those of other pictures in the batch (negative). retrieved: False leaves the
    latter out. `cmcl_accuracy`: how often the best of the variants is a positive alone. The paper gives no temperature.
    """

    LOSSES = ("cmcl",)
    NEEDS = (ScoresVariants,)
    SCOPE = "rank"

    def __init__(self, *, temperature: float = 0.1, retrieved: bool = True) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"ContrastVariants: temperature must be above 0, got {temperature}")
        self.temperature, self.retrieved = temperature, retrieved

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        variants = out.stream("variants").extra
        scores, there, positive = out.variant_scores.float(), variants["there"], variants["positive"]
        true, false = (
            scores.masked_fill(~which, -torch.inf).amax(1) for which in (positive & there, there & ~positive)
        )
        right = (true > false).sum().float()
        if self.retrieved:
            cosines, found = out.retrieved_cosines.float(), out.stream("retrieved").extra["there"]
            own = torch.eye(len(out), dtype=torch.bool, device=found.device)[..., None]
            others = (out.batch.same[:, None] != out.batch.same[None])[..., None]
            scores = torch.cat([scores, cosines.flatten(1)], 1)
            there = torch.cat([there, (found[None] & (own | others)).flatten(1)], 1)
            positive = torch.cat([positive, own.expand_as(cosines).flatten(1)], 1)
        scores = (scores / self.temperature).masked_fill(~there, -torch.inf)
        each = scores.logsumexp(1) - scores.masked_fill(~positive, -torch.inf).logsumexp(1)
        return {"cmcl": Term(each.sum(), len(out)), "cmcl_accuracy": Term(right, len(out))}
