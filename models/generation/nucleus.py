"""Nucleus sampling (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751) of one token per row, by inverse CDF.

The order of the tokens is from the likeliest, equal ones by id, so `draws` decide alone. A large vocabulary is not sorted:
its tokens are put into buckets of about equally likely ones, and two buckets per row are sorted, the one where the nucleus
ends and the one that the draw falls into.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 4096  # vocabularies up to this size are sorted whole
# rows at a time on the CPU, so that they stay in its cache: 64 rows of 30,522 take half of the time
CPU_ROWS = 16
NUM_BUCKETS, NATS = (
    2048,
    24.0,
)  # buckets have equal widths in log probability, down to exp(-24) of the likeliest


def nucleus(logits: Tensor, top_p: float, draws: Tensor, top_k: int | None = None) -> Tensor:
    """Returns one token per row (B,) from the smallest set of likeliest tokens with probability >= `top_p`.

    logits: (B, V). draws: (B,) in [0, 1). top_k: the probabilities are those among the k likeliest.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        return _of_top_k(logits, top_p, draws, top_k)
    if logits.shape[-1] <= LARGE:
        order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
        return _drawn(order.values, order.indices, top_p, draws)[0]
    num = CPU_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    parts = zip(logits.float().split(num), draws.split(num), strict=True)
    return torch.cat([_by_buckets(part, top_p, draw) for part, draw in parts])


def from_shortlist(
    logits: Tensor, top_p: float, draws: Tensor, top_k: int | None, num: int
) -> tuple[Tensor, Tensor]:
    """Returns what `nucleus` returns, and whether that is certain (B,), without waiting for the device.

    It is not certain where the nucleus has more than the `num` likeliest tokens.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        found = _of_top_k(logits, top_p, draws, top_k)
        return found, torch.ones_like(found, dtype=torch.bool)
    return among_likeliest(logits.double().softmax(-1), min(num, logits.shape[-1]), top_p, draws)


def among_likeliest(probs: Tensor, num: int, top_p: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tokens (B,) drawn among the `num` likeliest, and whether the nucleus is within those (B,)."""
    first, ids = probs.topk(num, dim=-1)
    ids, by_id = ids.sort(dim=-1)
    first, order = first.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    token, least = _drawn(first, ids.gather(1, order), top_p, draws)
    # further tokens may belong to a nucleus whose least is not above the least of `first`
    return token, (least > first[:, -1]) | (num == probs.shape[-1])


def _of_top_k(logits: Tensor, top_p: float, draws: Tensor, top_k: int) -> Tensor:
    logits, among = logits.topk(top_k, dim=-1)
    among, by_id = among.sort(dim=-1)
    probs, order = logits.gather(1, by_id).double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    return _drawn(probs, among.gather(1, order), top_p, draws)[0]


def _drawn(probs: Tensor, ids: Tensor, top_p: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the token (B,) that `draws` choose, and the least probability (B,) within the nucleus.

    probs, ids: (B, K), from the likeliest.
    """
    before = probs.cumsum(-1) - probs
    kept = torch.where(before < top_p, probs, 0.0).cumsum(-1)
    at = torch.searchsorted(kept, draws[:, None].double() * kept[:, -1:], right=True)
    last = (before < top_p).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(at, last))[:, 0], probs.gather(1, last)[:, 0]


def _by_buckets(logits: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """As `nucleus`, in linear time: only the members of two buckets per row are sorted. logits: float32."""
    if not len(logits):
        return torch.zeros(0, dtype=torch.long, device=logits.device)
    probs = logits.double().softmax(-1)
    below = logits.amax(-1, keepdim=True) - logits
    bucket = below.mul_(NUM_BUCKETS / NATS).clamp_max_(NUM_BUCKETS - 1).long()
    sums = probs.new_zeros(len(probs), NUM_BUCKETS).scatter_add_(1, bucket, probs)
    after = sums.cumsum(-1)
    before = after - sums
    last = _last((before < top_p) & (sums > 0))
    of_last = _Members(bucket, probs, last)
    start = before.gather(1, last)
    is_in = start + of_last.probs.cumsum(-1) - of_last.probs < top_p
    mass = start + torch.where(is_in, of_last.probs, 0.0).sum(-1, keepdim=True)
    target = draws[:, None].double() * mass
    at = torch.minimum(torch.searchsorted(after, target, right=True), last)
    members = _Members(bucket, probs, at)
    num = torch.where(at == last, (is_in & of_last.is_real).sum(-1, keepdim=True), members.num)
    place = torch.searchsorted(before.gather(1, at) + members.probs.cumsum(-1), target, right=True)
    return members.ids.gather(1, torch.minimum(place, num - 1))[:, 0]


def _last(flags: Tensor) -> Tensor:
    """Returns the index (B, 1) of the last True of each row (B, K)."""
    return flags.shape[1] - 1 - flags.flip(1).to(torch.uint8).argmax(1, keepdim=True)


class _Members:
    """The tokens of one bucket per row, from the likeliest, equal ones by id: (B, M), with padding behind.

    num: (B, 1), how many there are.
    """

    def __init__(self, bucket: Tensor, probs: Tensor, which: Tensor) -> None:
        row, token = (bucket == which).nonzero().unbind(1)  # of a row by id
        counts = row.bincount(minlength=len(bucket))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        shape = len(bucket), int(counts.max())
        ids = token.new_zeros(shape).index_put_((row, place), token)
        found = probs.new_full(shape, -1.0).index_put_((row, place), probs[row, token])
        found, order = found.sort(dim=-1, descending=True, stable=True)
        self.num, self.ids, self.is_real = counts[:, None], ids.gather(1, order), found >= 0
        self.probs = found.clamp_min(0.0)
