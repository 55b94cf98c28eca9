"""ALBEF once more, written from the paper: functions of a dict of weights, without modules of the package."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.second_transformer import linear, norm
from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.objectives.itm import hard_negatives

HEADS = 2


def attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
    """One head at a time; keys: (B, N) bool of those that are there."""
    heads = []
    for q_, k_, v_ in zip(*(x.chunk(HEADS, -1) for x in (q, k, v)), strict=True):
        scores = q_ @ k_.transpose(1, 2) / q_.shape[-1] ** 0.5
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, :], -1e30)
        heads.append(scores.softmax(-1) @ v_)
    return torch.cat(heads, -1)


def image_tokens(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    kernel = w["patches.patch.weight"].view(-1, 3, 8, 8)
    x = F.conv2d(pixels, kernel, w["patches.patch.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["patches.class_token"].expand(len(x), -1, -1), x], 1) + w["patches.positions"]
    for i in range(2):
        at = f"vision.blocks.{i}."
        q, k, v = linear(w, at + "qkv", norm(w, at + "norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, at + "out", attention(q, k, v, None))
        x = x + linear(w, at + "down", F.gelu(linear(w, at + "up", norm(w, at + "norm2", x, 1e-6))))
    return norm(w, "vision.norm", x, 1e-6)


def sublayers(w: dict[str, Tensor], at: str, x: Tensor, keys: Tensor, image: Tensor | None) -> Tensor:
    q, k, v = linear(w, at + "attention.qkv", x).chunk(3, -1)
    x = norm(w, at + "attention.norm", x + linear(w, at + "attention.out", attention(q, k, v, keys)), 1e-12)
    if image is not None:
        k, v = linear(w, at + "cross.kv", image).chunk(2, -1)
        seen = attention(linear(w, at + "cross.q", x), k, v, None)
        x = norm(w, at + "cross.norm", x + linear(w, at + "cross.out", seen), 1e-12)
    inner = F.gelu(linear(w, at + "feed_forward.up", x))
    return norm(w, at + "feed_forward.norm", x + linear(w, at + "feed_forward.down", inner), 1e-12)


def text_tokens(w: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    at = "text.embed."
    x = w[at + "words.weight"][ids] + w[at + "positions.weight"][: ids.shape[1]] + w[at + "types.weight"][0]
    x = norm(w, at + "norm", x, 1e-12)
    for i in range(2):
        x = sublayers(w, f"text.blocks.{i}.", x, mask, None)
    return x


def fused(w: dict[str, Tensor], words: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    for i in range(2):
        words = sublayers(w, f"fusion.{i}.", words, mask, image)
    return words


def word_logits(w: dict[str, Tensor], hidden: Tensor) -> Tensor:
    x = norm(w, "word_head.norm", F.gelu(linear(w, "word_head.dense", hidden)), 1e-12)
    return x @ w["text.embed.words.weight"].t() + w["word_head.decoder.bias"]


def feats(w: dict[str, Tensor], image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(
        F.normalize(linear(w, f"{name}_proj", x[:, 0]), dim=-1)
        for name, x in (("image", image), ("text", words))
    )


def kl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    return (p * (p.log() - log_q)).sum(-1)


def itc_loss(
    w: dict[str, Tensor], student: Any, teacher: Any, queue: tuple[Tensor, Tensor], alpha: float
) -> Tensor:
    """Equations 1, 2 and 6: one-hot targets over this batch's momentum features and the queue's."""
    parts = []
    for own, own_m, others, queued in (
        (student[0], teacher[0], teacher[1], queue[1]),
        (student[1], teacher[1], teacher[0], queue[0]),
    ):
        candidates = torch.cat([others, queued])
        log_p = (own @ candidates.t() / w["temp"]).log_softmax(1)
        q = (own_m @ candidates.t() / w["temp"].detach()).softmax(1)
        right = -log_p[torch.arange(len(own)), torch.arange(len(own))]
        parts.append((1 - alpha) * right + alpha * kl(q, log_p))
    return (parts[0] + parts[1]).mean() / 2


def second(
    w: dict[str, Tensor],
    m: dict[str, Tensor],
    batch: Batch,
    queue: tuple[Tensor, Tensor],
    alpha: float,
    seed: int,
) -> dict[str, Tensor]:
    """The three losses; m: the momentum weights, without gradient."""
    ids, mask = batch.streams["text"].data, batch.streams["text"].mask
    masked = batch.views["mlm"]["text"]
    assert mask is not None
    image, words = image_tokens(w, batch.streams["image"].data), text_tokens(w, ids, mask)
    image_m, words_m = image_tokens(m, batch.streams["image"].data), text_tokens(m, ids, mask)
    own, taught = feats(w, image, words), feats(m, image_m, words_m)
    torch.manual_seed(seed)
    invalid = batch.same[:, None] == batch.same[None, :]
    texts, _ = hard_negatives(own[0], taught[1], w["temp"], invalid)
    images, _ = hard_negatives(own[1], taught[0], w["temp"], invalid)
    losses = []
    for i in range(5):
        for t, v, label in ((i, i, 1), (i, int(images[i]), 0), (int(texts[i]), i, 0)):
            cls = fused(w, words[t : t + 1], mask[t : t + 1], image[v : v + 1])[0, 0]
            losses.append(F.cross_entropy(linear(w, "match_head", cls), torch.tensor(label)))
    target = masked.target["ids"]
    chosen = target != IGNORE
    logits = word_logits(w, fused(w, text_tokens(w, masked.data, mask), mask, image)[chosen])
    soft = word_logits(m, fused(m, text_tokens(m, masked.data, mask), mask, image_m)[chosen]).softmax(-1)
    log_p = logits.log_softmax(-1)
    right = -log_p[torch.arange(len(logits)), target[chosen]]
    mlm = ((1 - alpha) * right + alpha * kl(soft, log_p)).mean()
    return {"itc": itc_loss(w, own, taught, queue, alpha), "itm": torch.stack(losses).mean(), "mlm": mlm}
