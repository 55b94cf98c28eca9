"""The evidence lower bound of DALL-E's discrete VAE, relaxed. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vlpipe.models.codebooks.dalle_decoder import mapped
from vlpipe.models.interface.code_capabilities import Autoencodes
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class Elb(Objective):
    """`elb`: negative evidence lower bound of an image, in nats, divided by the number of its values (3 S S).

    -log p(image | codes) under a logit-Laplace distribution (appendix A.3), with codes that are relaxed by Gumbel-softmax
    (Jang et al. 2016, Maddison et al. 2016), plus `kl_weight` times KL(q(codes | image) || uniform), summed over places. As
    in appendix A.2, the weight rises from 0 within `kl_steps`, and the temperature falls from the first to the second of
    `temperature` within `temperature_steps`, both along a half cosine. noise: False leaves out the Gumbel noise.

    Diagnostics: `logit_laplace`, -log p per value; `code_kl`, nats per place; `code_perplexity`, of the codes of all places.
    """

    LOSSES = ("elb",)
    NEEDS = (Autoencodes,)

    def __init__(
        self,
        *,
        kl_weight: float = 6.6,
        kl_steps: int = 5000,
        temperature: tuple[float, float] = (1.0, 1 / 16),
        temperature_steps: int = 150_000,
        noise: bool = True,
    ) -> None:
        super().__init__()
        if min(kl_steps, temperature_steps) < 1 or min(temperature) <= 0:
            raise ValueError(
                "objectives: kl_steps and temperature_steps must be at least 1 and temperature above 0, "
                f"got {kl_steps}, {temperature_steps}, {temperature}"
            )
        self.kl_weight, self.kl_steps = kl_weight, kl_steps
        self.temperature, self.temperature_steps, self.noise = temperature, temperature_steps, noise

    def forward(self, out: Outputs) -> Mapping[str, Term | Tensor]:
        logits = out.code_logits.float()
        step, pixels = out.batch.step.number, out.pixels
        temperature = half_cosine(*self.temperature, step / self.temperature_steps)
        beta = half_cosine(0.0, self.kl_weight, step / self.kl_steps)
        weights = ((logits + gumbel(logits) if self.noise else logits) / temperature).softmax(1)
        location, log_scale = out.model.decoded(weights).float().chunk(2, 1)
        nats = logit_laplace_nats(pixels, location, log_scale).sum()
        log_q = logits.log_softmax(1)
        kl = (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum()
        num, num_values = len(pixels), pixels[0].numel()
        num_places = logits[0, 0].numel()
        used = log_q.detach().exp().mean((0, 2, 3))
        return {
            "elb": Term((nats + beta * kl) / num_values, num),
            "logit_laplace": Term(nats.detach() / num_values, num),
            "code_kl": Term(kl.detach() / num_places, num),
            "code_perplexity": torch.special.entr(used).sum().exp(),
        }


def half_cosine(start: float, end: float, progress: float) -> float:
    """Returns a value between `start` and `end`; progress: from 0 to 1, what is above counts as 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def gumbel(like: Tensor) -> Tensor:
    """Returns standard Gumbel noise of the shape of `like`."""
    tiny = torch.finfo(like.dtype).tiny
    return -torch.rand_like(like).clamp(min=tiny).log().neg().clamp(min=tiny).log()


def logit_laplace_nats(pixels: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Returns -log of the logit-Laplace density of pixels from 0 to 1, which are `mapped` before.

    The density of x is exp(-|logit(x) - location| / scale) / (2 scale x (1 - x)).
    """
    x = mapped(pixels)
    distance = (torch.logit(x) - location).abs() * torch.exp(-log_scale)
    return distance + log_scale + math.log(2) + (x * (1 - x)).log()
