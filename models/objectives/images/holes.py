"""Losses of context encoders: squared error, and a discriminator. Pathak et al. 2016, https://arxiv.org/abs/1604.07379."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vlpipe.models.blocks.convnets.hole_nets import HoleDiscriminator, middle
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pretext_capabilities import FillsHoles


class HoleError(Objective):
    """`hole`: mean squared error of the values of the pixels that count, from -1 to 1; then over pictures (equation 1).

    The stream `image` has target["counted"] (B, S, S), their weights; weights other than 0 do not enter the count, as in the
    authors' code. `hole_mean` is a diagnostic: the error of the mean colour of each picture's pixels that do not count.
    """

    LOSSES = ("hole",)
    NEEDS = (FillsHoles,)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        filled, true = out.filled.float(), out.true_part.float()
        counted = middle(out.stream("image").target["counted"], filled.shape[-1])[:, None]
        num = 3 * (counted > 0).sum((1, 2, 3))
        error = (counted * (filled - true).square()).sum((1, 2, 3)) / num
        hidden = (counted > 0).float()
        rest = _rest(out)
        plain = (hidden * (rest - true).square()).sum((1, 2, 3)) / num
        return {"hole": Term(error.sum(), len(out)), "hole_mean": Term(plain.sum(), len(out))}


class AdversarialHole(Objective):
    """`discriminator`: of true and filled parts, in nats; `adversarial`: that filled parts are taken for true ones.

    share: of `adversarial` beside `hole`, whose `weight` is 1 - share. The discriminator is trained by the first, all else
    by the second. Both are of the same step, while the authors' code updates one after the other. width: of the
    discriminator. Parameters are named `objectives.<k>.discriminator.*`; the paper's learning rate of the rest is ten times
    theirs.
    """

    LOSSES = ("adversarial", "discriminator")
    NEEDS = (FillsHoles,)
    SCOPE: Scope = "rank"  # its batch norms

    def __init__(self, *, width: int = 64, share: float = 0.001) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"objectives: share must be between 0 and 1, got {share}")
        self.width, self.share = width, share

    def bind(self, model: Any) -> None:
        device = next(model.parameters()).device
        self.discriminator = HoleDiscriminator(model.hole_size, self.width).to(device)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        filled, true = out.filled.float(), out.true_part.float()
        told = self.discriminator(true).flatten(), self.discriminator(filled.detach()).flatten()
        discriminator = F.softplus(-told[0]).sum() + F.softplus(told[1]).sum()
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, fixed, (filled,)).flatten()
        return {
            "adversarial": Term(self.share * F.softplus(-fooled).sum(), len(out)),
            "discriminator": Term(discriminator, len(out)),
        }


def _rest(out: Outputs) -> Tensor:
    """Returns the mean colour (B, 3, 1, 1), from -1 to 1, of the pixels that do not count."""
    image = out.stream("image")
    others = (image.target["counted"] == 0).float()[:, None]
    mean = (others * image.data.float()).sum((2, 3), keepdim=True) / others.sum((2, 3), keepdim=True)
    found: Tensor = out.model.rescaled(mean)
    return found
