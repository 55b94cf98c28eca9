"""Alignment of words with image patches or regions by optimal transport (UNITER's WRA, ViLT's word-patch alignment).

The transport plan is IPOT's: Xie et al. 2020, https://arxiv.org/abs/1802.04307; as in UNITER, Chen et al. 2020,
https://arxiv.org/abs/1909.11740. The plan has no gradient, only the cost has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.capabilities import Fuses
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import match_labels


class WordRegion(Objective):
    """`word_region`: transport distance of matching rows minus that of mismatched ones, over the number of rows.

    Its view needs the corruptor `mismatch`. image: the stream that words are aligned with. special_tokens: whether start and
    end token and the image's class token take part (UNITER; not ViLT). beta, iterations: of IPOT.
    """

    LOSSES = ("word_region",)
    NEEDS = (Fuses,)

    def __init__(
        self,
        *,
        image: str = "image",
        special_tokens: bool = False,
        class_token: bool = True,
        beta: float = 0.5,
        iterations: int = 50,
    ) -> None:
        super().__init__()
        self.image, self.special_tokens, self.class_token = image, special_tokens, class_token
        self.beta, self.iterations = beta, iterations

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        distance = transport_distance(*self.inputs(out), self.beta, self.iterations)
        sign = 2 * match_labels(out.batch) - 1
        return {"word_region": Term((distance * sign).sum(), len(sign))}

    def inputs(self, out: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns words (B, L, D), parts of the image (B, M, D), and the masks of those that take part."""
        text, image = out.stream("text"), out.stream(self.image)
        words, parts = out.fused["text"].float(), out.fused[self.image].float()
        assert text.mask is not None
        word_mask, part_mask = (
            text.mask.clone(),
            torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device),
        )
        if image.mask is not None:
            part_mask[:, -image.mask.shape[1] :] = image.mask
        if not self.special_tokens:
            last = word_mask.sum(1) - 1
            word_mask[:, 0] = False
            word_mask.scatter_(1, last[:, None], False)
            if self.class_token:
                part_mask[:, 0] = False
        return words, parts, word_mask, part_mask

    def plan(self, out: Outputs) -> Tensor:
        """Returns the transport plan (B, M, L) from words to parts of the image; it sums to 1 for each row."""
        words, parts, word_mask, part_mask = self.inputs(out)
        cost = cosine_cost(words, parts, word_mask, part_mask)
        return ipot(cost, word_mask, part_mask, self.beta, self.iterations)


def cosine_cost(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
    """Returns 1 - cosine (B, N, M) of x (B, N, D) and y (B, M, D); 0 where one is masked."""
    cost = 1 - F.normalize(x, dim=-1, eps=1e-12) @ F.normalize(y, dim=-1, eps=1e-12).transpose(1, 2)
    return cost.masked_fill(~(x_mask[:, :, None] & y_mask[:, None, :]), 0)


def transport_distance(
    x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Returns the optimal transport distance (B,) of x (B, N, D) and y (B, M, D), by cosine cost over unmasked rows."""
    with torch.autocast(x.device.type, enabled=False):
        cost = cosine_cost(x, y, x_mask, y_mask)
        plan = ipot(cost.detach(), x_mask, y_mask, beta, iterations)  # (B, M, N)
    return (cost.transpose(1, 2) * plan).sum((1, 2))


@torch.no_grad()
def ipot(cost: Tensor, x_mask: Tensor, y_mask: Tensor, beta: float, iterations: int) -> Tensor:
    """Returns IPOT's transport plan (B, M, N) of `cost` (B, N, M) with uniform masses on the unmasked rows and columns."""
    num_x = x_mask.sum(1).to(cost.dtype)
    num_y = y_mask.sum(1).to(cost.dtype)
    pairs = (x_mask[:, :, None] & y_mask[:, None, :]).transpose(1, 2)  # (B, M, N)
    sigma = x_mask.to(cost.dtype) / num_x[:, None]
    plan = pairs.to(cost.dtype)
    kernel = torch.exp(-cost.transpose(1, 2) / beta).masked_fill(~pairs, 0)
    x_fill, y_fill = (~x_mask).to(cost.dtype) * 1e4, (~y_mask).to(cost.dtype) * 1e4
    for _ in range(iterations):
        q = kernel * plan
        delta = 1 / (num_y[:, None] * torch.einsum("bmn,bn->bm", q, sigma) + y_fill)
        sigma = 1 / (num_x[:, None] * torch.einsum("bmn,bm->bn", q, delta) + x_fill)
        plan = delta[:, :, None] * q * sigma[:, None, :]
    return plan.masked_fill(~pairs, 0)
