"""Routers: noisy top-k (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538), GShard (Lepikhin et al. 2020,
https://arxiv.org/abs/2006.16668), Switch (Fedus et al. 2021, https://arxiv.org/abs/2101.03961).

All compute in float32, also under autocast: Switch's "selective precision".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.experts.routing import Routing, first_share, token_mean


class Router(nn.Module):
    """Base class: a matrix (width, num_experts) and a rule. choices: experts per token."""

    def __init__(self, width: int, num_experts: int, choices: int = 1) -> None:
        super().__init__()
        self.num_experts, self.choices = num_experts, choices
        self.weight = nn.Parameter(torch.zeros(width, num_experts))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Routing:
        """x: (N, width); valid: (N,) bool, False for padding, which asks no expert and counts in no loss."""
        with torch.autocast(x.device.type, enabled=False):
            return self.route(x.float(), valid)

    def route(self, x: Tensor, valid: Tensor | None) -> Routing:
        """The rule, for x in float32. Subclasses define it."""
        raise NotImplementedError

    def wanted(self, shape: tuple[int, int], valid: Tensor | None) -> Tensor:
        """Returns (N, k) bool: True for all choices of tokens that are not padding."""
        asked = torch.ones(shape, dtype=torch.bool, device=self.weight.device)
        return asked if valid is None else asked & valid[:, None]


class Switch(Router):
    """One expert per token; the gate is its probability. Loss `balance`: E x sum_i f_i P_i, 1 if balanced.

    f: share of tokens by choice, before any limit; P: mean probability (equations 4 to 6). jitter: in training the input is
    multiplied by a uniform factor from 1 - jitter to 1 + jitter (appendix).
    """

    def __init__(self, width: int, num_experts: int, jitter: float = 1e-2) -> None:
        super().__init__(width, num_experts)
        self.jitter = jitter

    def route(self, x: Tensor, valid: Tensor | None) -> Routing:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        probs = (x @ self.weight.float()).softmax(-1)
        gate, expert = probs.max(-1, keepdim=True)
        share = first_share(expert, self.num_experts, valid)
        loss = self.num_experts * (share * token_mean(probs, valid)).sum()
        return Routing(expert, gate, self.wanted((len(x), 1), valid), share, {"balance": loss})


class GShard(Router):
    """Two experts per token; gates are normalised over the two. Loss `balance`: mean_e(m_e x c_e), 1 / E^2 if balanced.

    m: mean gate, c: share of tokens by first choice (algorithm 1). The second expert is asked with probability
    min(1, 2 x its normalised gate); in evaluation always. gumbel: the second choice is drawn with Gumbel noise on the
    logits, as in DeepSpeed and fairscale, and always asked.
    """

    def __init__(self, width: int, num_experts: int, gumbel: bool = False) -> None:
        if num_experts < 2:
            raise ValueError(f"gshard asks two experts, so num_experts must be at least 2, got {num_experts}")
        super().__init__(width, num_experts, choices=2)
        self.gumbel = gumbel

    def route(self, x: Tensor, valid: Tensor | None) -> Routing:
        logits = x @ self.weight.float()
        probs = logits.softmax(-1)
        first = probs.argmax(-1, keepdim=True)
        others = logits
        if self.gumbel and self.training:
            others = logits - torch.empty_like(logits).exponential_().log()
        second = others.scatter(1, first, -math.inf).argmax(-1, keepdim=True)
        experts = torch.cat([first, second], 1)
        gates = probs.gather(1, experts)
        gates = gates / gates.sum(1, keepdim=True).clamp(min=torch.finfo(gates.dtype).eps)
        share = first_share(experts, self.num_experts, valid)
        loss = (token_mean(probs, valid) * share).mean()
        wanted = self.wanted((len(x), 2), valid)
        if self.training and not self.gumbel:
            drawn = 2 * gates[:, 1].detach() > torch.rand_like(gates[:, 1])
            wanted = torch.stack([wanted[:, 0], wanted[:, 1] & drawn], 1)
        return Routing(experts, gates, wanted, share, {"balance": loss})


class NoisyTopK(Router):
    """The k experts with the highest noisy logits; gates are their softmax (equations 3 to 5).

    Losses `importance` and `load`: squared coefficients of variation over experts of the summed gates (equation 6) and of
    the smooth number of tokens (equations 8 to 11), 0 if balanced. unbiased: with the sample variance in place of the
    population's. No noise in evaluation, and no load loss where k is the number of experts.
    """

    def __init__(self, width: int, num_experts: int, k: int = 2, unbiased: bool = False) -> None:
        if not 1 <= k <= num_experts:
            raise ValueError(f"k must be from 1 to num_experts = {num_experts}, got {k}")
        super().__init__(width, num_experts, choices=k)
        self.unbiased = unbiased
        self.noise = nn.Parameter(torch.zeros(width, num_experts))

    def route(self, x: Tensor, valid: Tensor | None) -> Routing:
        clean = x @ self.weight.float()
        scale = F.softplus(x @ self.noise.float())
        noisy = clean + torch.randn_like(clean) * scale if self.training else clean
        top, experts = noisy.topk(self.choices, -1)
        gates = top.softmax(-1)
        spread = torch.zeros_like(clean).scatter(1, experts, gates)
        if valid is not None:
            spread = spread * valid[:, None]
        losses = {"importance": self._cv2(spread.sum(0))}
        if self.training and self.choices < self.num_experts:
            chance = self._chance(clean, noisy, scale)
            losses["load"] = self._cv2((chance if valid is None else chance * valid[:, None]).sum(0))
        share = first_share(experts, self.num_experts, valid)
        return Routing(experts, gates, self.wanted((len(x), self.choices), valid), share, losses)

    def _chance(self, clean: Tensor, noisy: Tensor, scale: Tensor) -> Tensor:
        """Returns P (N, E): the probability that an expert is among the k if its own noise is drawn anew (equation 9)."""
        top = noisy.topk(self.choices + 1, -1).values
        inside = noisy >= top[:, self.choices - 1 : self.choices]
        # the k-th highest of the others: of an expert inside the k + 1-st of all, of another one the k-th
        others = torch.where(
            inside, top[:, self.choices : self.choices + 1], top[:, self.choices - 1 : self.choices]
        )
        return torch.special.ndtr((clean - others) / scale)

    def _cv2(self, x: Tensor) -> Tensor:
        return x.var(unbiased=self.unbiased) / x.mean().square().clamp(min=torch.finfo(x.dtype).eps)


ROUTERS: dict[str, type[Router]] = {"switch": Switch, "gshard": GShard, "noisy_top_k": NoisyTopK}
