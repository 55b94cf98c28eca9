"""VLMo once more, written from the paper: functions of a dict of weights, without modules of the package."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.second_transformer import linear, norm
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.objectives.itm import hard_negatives

HEADS, LAYERS, FIRST_VL, GRID = 2, 3, 2, 2


def released_bias(w: dict[str, Tensor], num_text: int, has_image: bool) -> list[Tensor]:
    """One bias (heads, L, L) per layer, by the single table and the indices that the released code makes."""
    table = torch.cat([w["relative.image"], w["relative.cross"], w["relative.text"]])
    longest, num_image = len(w["relative.text"]) // 2, (2 * GRID - 1) ** 2 + 3
    index: dict[tuple[int, int], int] = {}
    places = [(y, x) for y in range(GRID) for x in range(GRID)] if has_image else []
    first = num_text  # of the image: its class token
    for i in range(num_text):
        for j in range(num_text):
            index[i, j] = num_image + 2 + (j - i) + longest - 2
        index[0, i], index[i, 0] = len(table) - 3, len(table) - 2
    if num_text:
        index[0, 0] = len(table) - 1
    for i, (y, x) in enumerate(places, first + 1):
        for j, (v, u) in enumerate(places, first + 1):
            index[i, j] = (y - v + GRID - 1) * (2 * GRID - 1) + x - u + GRID - 1
        index[first, i], index[i, first] = num_image - 3, num_image - 2
    if has_image:
        index[first, first] = num_image - 1
        for i in range(num_text):
            for j in range(first, first + 1 + len(places)):
                index[i, j], index[j, i] = num_image, num_image + 1
    length = num_text + (1 + len(places) if has_image else 0)
    rows = torch.tensor([[index[i, j] for j in range(length)] for i in range(length)])
    return list(table[rows].permute(2, 0, 1).chunk(LAYERS))


def layer(
    w: dict[str, Tensor], i: int, x: Tensor, experts: list[str], keys: Tensor, bias: Tensor | None
) -> Tensor:
    """experts: of each token; one token at a time where they differ."""

    def each(function: Any, y: Tensor) -> Tensor:
        return torch.stack([function(name, y[:, t]) for t, name in enumerate(experts)], 1)

    at = f"blocks.{i}."
    shares = f"{at}attention.shared.out.bias" in w

    def own(name: str) -> str:
        return f"{at}attention.{'shared' if shares else name}."

    def project(name: str, y: Tensor) -> Tensor:
        zero = torch.zeros_like(w[own(name) + "q_bias"])
        bias_ = torch.cat([w[own(name) + "q_bias"], zero, w[own(name) + "v_bias"]])
        return norm(w, own(name) + "norm", y) @ w[own(name) + "qkv.weight"].t() + bias_

    heads = []
    for h, (q, k, v) in enumerate(
        zip(*(part.chunk(HEADS, -1) for part in each(project, x).chunk(3, -1)), strict=True)
    ):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores if bias is None else scores + bias[h]
        heads.append(scores.masked_fill(~keys[:, None, :], -1e30).softmax(-1) @ v)
    mixed = each(lambda name, y: linear(w, own(name) + "out", y), torch.cat(heads, -1))
    x = x + (w.get(at + "scale1", 1)) * mixed

    def expert(name: str, y: Tensor) -> Tensor:
        part = f"{at}experts.{name}."
        return linear(w, part + "down", F.gelu(linear(w, part + "up", norm(w, part + "norm", y))))

    return x + (w.get(at + "scale2", 1)) * each(expert, x)


def encode(w: dict[str, Tensor], text: Stream | None, image: Stream | None, top: str) -> Tensor:
    """Words, class token and patches after the last norm; the upper layers use the expert `top`."""
    parts, keys, lower = [], [], []
    if text is not None:
        x = w["words.words.weight"][text.data]
        if "words.positions.weight" in w:
            x = x + w["words.positions.weight"][: x.shape[1]]
        parts.append(norm(w, "words.norm", x, 1e-12) + w["modality.weight"][0])
        assert text.mask is not None
        keys.append(text.mask)
        lower += ["text"] * x.shape[1]
    if image is not None:
        kernel = w["patch.weight"].view(-1, 3, 8, 8)
        x = F.conv2d(image.data, kernel, w["patch.bias"], stride=8).flatten(2).transpose(1, 2)
        if "masked" in image.extra:
            hidden = image.extra["masked"][:, :, None].float()
            x = x * (1 - hidden) + w["mask_token"] * hidden
        x = torch.cat([w["class_token"].expand(len(x), -1, -1), x], 1)
        x = x + (w.get("positions", 0))
        parts.append(x + w["modality.weight"][1])
        keys.append(torch.ones(x.shape[:2], dtype=torch.bool))
        lower += ["image"] * x.shape[1]
    x, seen = torch.cat(parts, 1), torch.cat(keys, 1)
    biases: list[Any] = [None] * LAYERS
    if "relative.image" in w:
        biases = released_bias(w, 0 if text is None else text.data.shape[1], image is not None)
    for i in range(LAYERS):
        x = layer(w, i, x, [top] * x.shape[1] if i >= FIRST_VL else lower, seen, biases[i])
    return norm(w, "norm", x)


def feature(w: dict[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    return F.normalize(hidden[:, 0] @ w[f"{name}_proj.weight"].t(), dim=-1)


def word_loss(w: dict[str, Tensor], hidden: Tensor, target: Tensor) -> Tensor:
    chosen = target != IGNORE
    x = norm(w, "word_head.norm", F.gelu(linear(w, "word_head.dense", hidden[chosen])), 1e-12)
    return F.cross_entropy(linear(w, "word_head.decoder", x), target[chosen])


def second(w: dict[str, Tensor], batch: Batch, seed: int) -> dict[str, Tensor]:
    text, image = batch.streams["text"], batch.streams["image"]
    images, texts = encode(w, None, image, "image"), encode(w, text, None, "text")
    feats = feature(w, "image", images), feature(w, "text", texts)
    own = torch.arange(5)
    itc = []
    for pair, temp in (
        (feats, w["temp"]),
        (
            (
                feature(w, "image_vl", encode(w, None, image, "both")),
                feature(w, "text_vl", encode(w, text, None, "both")),
            ),
            w["vl_temp"],
        ),
    ):
        logits = pair[0] @ pair[1].t() / temp
        itc.append((F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2)
    torch.manual_seed(seed)
    invalid = batch.same[:, None] == batch.same[None, :]
    bad_texts, _ = hard_negatives(feats[0], feats[1], w["temp"], invalid)
    bad_images, _ = hard_negatives(feats[1], feats[0], w["temp"], invalid)
    itm = []
    for i in range(5):
        for t, v, label in ((i, i, 1), (i, int(bad_images[i]), 0), (int(bad_texts[i]), i, 0)):
            x = encode(w, text.rows(slice(t, t + 1)), image.rows(slice(v, v + 1)), "both")
            pooled = torch.tanh(linear(w, "pooler.dense", x[0, 0]))
            itm.append(F.cross_entropy(linear(w, "match_head", pooled), torch.tensor(label)))
    masked = batch.views["mlm"]["text"]
    joint = encode(w, masked, image, "both")[:, : masked.data.shape[1]]
    return {
        "itc": (itc[0] + itc[1]) / 2,
        "itm": torch.stack(itm).mean(),
        "mlm": word_loss(w, joint, masked.target["ids"]),
    }
