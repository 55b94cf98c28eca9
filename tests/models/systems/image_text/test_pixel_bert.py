"""Pixel-BERT against a second implementation, written from the paper, in float64: losses and gradients to 1e-9."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import noisy
from tests.models.second_resnet import batch_norm, conv, float64
from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.optim.groups import Defaults, build_optimiser
from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.models.systems.image_text.pixel_bert import PixelBert
from vlpipe.stages.loading.makers.images.sampled_pixels import SampledPixels
from vlpipe.stages.train.build import Net

HEADS, WORDS, MASK, LENGTHS, DEPTHS = 2, 31, 4, (9, 7, 5, 3, 8), [1, 2]
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "image_size": 16,
    "cnn_layers": DEPTHS,
    "cnn_width": 3,
    "stem": "small",
    "width": 16,
    "layers": 2,
    "heads": HEADS,
    "max_text_length": 12,
    "dropout": 0.0,
}


def pixel_bert(**changes: Any) -> PixelBert:
    model: PixelBert = noisy(PixelBert(**SIZES | changes), but="nothing")
    return model.double().train()


def batch_of(seed: int = 0, keep: bool = True) -> Batch:
    """Five pairs; in the view `mlm` words are masked, in `itm` two texts are another's. 6 of 4 x 4 places are seen."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(9)[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, WORDS, (5, 9), generator=draw).masked_fill(~mask, 0)
    hidden = mask & (torch.rand(5, 9, generator=draw) < 0.3)
    hidden[:, 1], hidden[:, 0] = True, False
    masked = Stream(ids.masked_fill(hidden, MASK), mask, target={"ids": ids.masked_fill(~hidden, IGNORE)})
    order, match = torch.tensor([0, 2, 1, 3, 4]), torch.tensor([1, 0, 0, 1, 1])
    seen = torch.stack([torch.randperm(16, generator=draw)[:6].sort().values for _ in range(5)])
    pixels = torch.randn(5, 3, 16, 16, generator=draw, dtype=torch.float64)
    return Batch(
        streams={
            "image": Stream(pixels, extra={"keep": seen} if keep else {}),
            "text": Stream(ids, mask),
        },
        same=torch.arange(5),
        views={
            "mlm": {"text": masked},
            "itm": {"text": Stream(ids[order], mask[order], target={"match": match})},
        },
    )


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]


def maps(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    own = {name.removeprefix("cnn."): value for name, value in w.items() if name.startswith("cnn.")}
    x = batch_norm(conv(pixels, own["conv1.weight"]), own, "bn1").clamp(min=0)
    for stage, depth in enumerate(DEPTHS, 1):
        for k in range(depth):
            at, stride = f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1
            y = batch_norm(conv(x, own[f"{at}.conv1.weight"]), own, f"{at}.bn1").clamp(min=0)
            y = batch_norm(conv(y, own[f"{at}.conv2.weight"], stride), own, f"{at}.bn2").clamp(min=0)
            y = batch_norm(conv(y, own[f"{at}.conv3.weight"]), own, f"{at}.bn3")
            if k == 0:
                x = batch_norm(conv(x, own[f"{at}.downsample.0.weight"], stride), own, f"{at}.downsample.1")
            x = (x + y).clamp(min=0)
    return x


def second(w: dict[str, Tensor], text: Stream, image: Stream) -> Tensor:
    """Hidden states of the words, (B, L, width)."""
    x = maps(w, image.data)  # (B, C, 8, 8)
    pooled = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    places = pooled.permute(0, 2, 3, 1).reshape(len(x), 16, -1)
    if "keep" in image.extra:
        places = torch.stack([row[seen] for row, seen in zip(places, image.extra["keep"], strict=True)])
    pixels = linear(w, "project", places) + w["semantic"]
    at = "bert.embed."
    words = w[at + "words.weight"][text.data] + w[at + "positions.weight"][: text.data.shape[1]]
    words = norm(w, at + "norm", words + w[at + "types.weight"][0])
    assert text.mask is not None
    keys = torch.cat([text.mask, torch.ones(pixels.shape[:2], dtype=torch.bool)], 1)
    x = torch.cat([words, pixels], 1)
    for i in range(2):
        at, heads = f"bert.blocks.{i}.", []
        for q, k, v in zip(
            *(y.chunk(HEADS, -1) for y in linear(w, at + "attention.qkv", x).chunk(3, -1)), strict=True
        ):
            scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~keys[:, None, :], -1e30)
            heads.append(scores.softmax(-1) @ v)
        x = norm(w, at + "attention.norm", x + linear(w, at + "attention.out", torch.cat(heads, -1)))
        inner = F.gelu(linear(w, at + "feed_forward.up", x))
        x = norm(w, at + "feed_forward.norm", x + linear(w, at + "feed_forward.down", inner))
    return x[:, : text.data.shape[1]]


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def net_of(model: PixelBert) -> Net:
    return Net(model, [(1.0, "mlm", MaskedLm()), (1.0, "itm", Match())]).train()


@pytest.mark.parametrize("keep", [True, False])
def test_losses_and_all_gradients_are_those_of_the_second_implementation(keep: bool) -> None:
    model, batch = pixel_bert(), batch_of(1, keep)
    w, net = weights(model), net_of(model)
    with float64():
        found = {n: v.total / v.count for n, v in net(batch).items() if n in net.losses}
    image = batch.streams["image"]
    masked, swapped = batch.views["mlm"]["text"], batch.views["itm"]["text"]
    chosen = masked.target["ids"] != IGNORE
    x = norm(w, "word_head.norm", F.gelu(linear(w, "word_head.dense", second(w, masked, image)[chosen])))
    logits = x @ w["bert.embed.words.weight"].t() + w["word_head.decoder.bias"]
    pooled = torch.tanh(linear(w, "pooler.dense", second(w, swapped, image)[:, 0]))
    wanted = {
        "mlm": F.cross_entropy(logits, masked.target["ids"][chosen]),
        "match": F.cross_entropy(linear(w, "match_head", pooled), swapped.target["match"]),
    }
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-9)
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(
            p.grad, w[name].grad, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_both_losses_share_one_pass_of_the_cnn() -> None:
    """Which also is why the loader samples places once for all views."""
    model, asked = pixel_bert(), Counter[str]()
    model.cnn.layer1.register_forward_hook(lambda *_: asked.update(["cnn"]))
    model.bert.blocks[0].register_forward_hook(lambda *_: asked.update(["bert"]))
    net_of(model)(batch_of())
    assert asked == {"cnn": 1, "bert": 2}


def test_places_have_no_order_and_those_left_out_are_not_seen() -> None:
    model, batch = pixel_bert().eval(), batch_of(keep=False)
    image, text = batch.streams["image"], batch.streams["text"]

    def match(keep: Tensor | None) -> Tensor:
        stream = Stream(image.data, extra={} if keep is None else {"keep": keep})
        streams = {"image": stream, "text": text}
        return Outputs(model, Batch(streams, same=torch.arange(5)), grad=False).match

    every = torch.arange(16).expand(5, -1)
    torch.testing.assert_close(match(every), match(None))
    torch.testing.assert_close(match(every.flip(1)), match(None))
    assert not torch.allclose(match(every[:, :6]), match(None))


def test_the_cnn_is_trained_by_sgd_and_the_rest_by_adamw() -> None:
    """As the workflow's `groups` say: one step moves each by the rule of its own optimiser."""
    model = pixel_bert()
    rule = ParameterGroup(match=["cnn.*"], optimiser="sgd", lr=1e-2, weight_decay=5e-4, momentum=0.9)
    defaults = Defaults(lr=1e-4, weight_decay=1e-2, betas=(0.9, 0.999))
    net = net_of(model)
    optimiser = build_optimiser(net, defaults, [rule])
    kinds = {
        id(p): type(one).__name__
        for one in optimiser.optimisers
        for g in one.param_groups
        for p in g["params"]
    }
    for name, p in model.named_parameters():
        assert kinds[id(p)] == ("SGD" if name.startswith("cnn.") else "AdamW"), name
    for group in optimiser.param_groups:
        group["lr"] = defaults.lr * group["lr_scale"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sum(v.total / v.count for n, v in net(batch_of()).items() if n in net.losses).backward()
    optimiser.step()
    kernel, matrix = model.cnn.layer1[0].conv1.weight, model.pooler.dense.weight
    old = before["cnn.layer1.0.conv1.weight"]
    torch.testing.assert_close(kernel, old - 1e-2 * (kernel.grad + 5e-4 * old))
    old = before["pooler.dense.weight"]  # Adam's first step has the size of the rate
    torch.testing.assert_close(matrix, old * (1 - 1e-6) - 1e-4 * matrix.grad.sign(), rtol=1e-6, atol=1e-7)


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = pixel_bert().float().eval()
    folder.save(model, tmp_path)
    again = folder.load(tmp_path).eval()
    batch = batch_of().map(lambda x: x.float() if x.is_floating_point() else x)
    assert torch.equal(Outputs(again, batch).match, Outputs(model, batch).match)
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 18"):
        pixel_bert(image_size=18)


def test_the_stride_of_the_published_network() -> None:
    model = PixelBert(vocab_size=7, image_size=128, layers=1, width=8, heads=1)
    batch = Batch({"image": Stream(torch.zeros(1, 3, 128, 128))}, same=torch.arange(1))
    assert model.stride == 64
    assert Outputs(model, batch, grad=False).pixel_embeds.shape == (1, 4, 8)


def test_places_are_drawn_evenly_and_anew_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 draws of 6 of 16: each place 375 times, give or take four deviations."""
    maker = SampledPixels(size=32, num=6, stride=8)

    class Row:
        @staticmethod
        def rgb(*_: Any) -> Any:
            from PIL import Image

            return Image.new("RGB", (32, 32))

    row: Any = Row()
    draws = [maker(row, "", np.random.default_rng(k))["extra/keep"] for k in range(1000)]
    assert all(len(set(d.tolist())) == 6 and (np.diff(d) > 0).all() for d in draws)
    counts = np.bincount(np.concatenate(draws), minlength=16)
    assert len(counts) == 16
    assert (abs(counts - 375) < 4 * (1000 * 0.375 * 0.625) ** 0.5).all()
    stream = maker.collate([maker(row, "", np.random.default_rng(k)) for k in range(3)])
    assert stream.extra["keep"].tolist() == [d.tolist() for d in draws[:3]]
    with pytest.raises(
        ValueError, match="num must be from 1 to the 16 places of 32 pixels at stride 8, got 17"
    ):
        SampledPixels(size=32, num=17, stride=8)
