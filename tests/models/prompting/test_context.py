"""Learned contexts against a text encoder that is written out, with gradients; what prompts look like."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.prompting.context import Prompts, prompts_of, text_feats, word_vectors, words_replaced
from vlpipe.models.systems.image_text.albef import Albef
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.systems.image_text.siglip import Siglip
from vlpipe.models.tokenizer import Tokenizer

NAMES = ["red ring", "box"]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe(["red ring box photo of a ."] * 5, 600, "clip")


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.train(["red ring box photo of a ."] * 5, 60)


def small_clip(tokenizer: Tokenizer) -> Clip:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "vision_width": 8, "vision_layers": 1, "vision_heads": 2}
    texts = {"text_width": 8, "text_layers": 2, "text_heads": 2, "max_text_length": 12, "embed_dim": 6}
    return Clip.from_spec({**sizes, **texts}, tokenizer).eval().requires_grad_(False)


def of(tokenizer: Tokenizer, position: str, ending: str = ".") -> Prompts:
    return prompts_of(tokenizer, NAMES, 3, 12, position, ending)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("position", "wanted"),
    [
        ("end", ["<0>", "<1>", "<2>", "red", "ring", "."]),
        ("middle", ["<0>", "red", "ring", "<1>", "<2>", "."]),
        ("front", ["red", "ring", "<0>", "<1>", "<2>", "."]),
    ],
)
def test_where_the_name_is(bpe: Tokenizer, position: str, wanted: Sequence[str]) -> None:
    prompts = of(bpe, position)
    words = {bpe.ids(word)[0]: word for word in ("red", "ring", ".")}
    shown = [
        f"<{slot}>" if slot >= 0 else words.get(i, str(i))
        for i, slot in zip(prompts.ids[0].tolist(), prompts.slot[0].tolist(), strict=True)
    ]
    assert shown == [str(bpe.start), *wanted, *[str(bpe.end)] * 5]
    assert prompts.mask.sum(1).tolist() == [8, 7]
    assert prompts.ids[1, 7] == bpe.pad
    assert not (prompts.ids[prompts.slot >= 0] == bpe.end).any(), (
        "CLIP reads its feature at the first end token"
    )


def by_hand(model: Clip, tokenizer: Tokenizer, context: Tensor, name: str) -> Tensor:
    """CLIP's text encoder of `[start] V1 V2 V3 NAME . [end]`, from the formula."""
    table = model.words.words.weight
    ids = [*tokenizer.ids(name), *tokenizer.ids("."), tokenizer.end]
    x = (
        torch.cat([table[[tokenizer.start]], context, table[ids]])
        + model.words.positions.weight[: 4 + len(ids)]
    )
    for block in model.text.blocks:
        h = F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias, 1e-5)
        q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).view(len(x), 3, 2, 4).permute(1, 2, 0, 3)
        scores = (q @ k.transpose(1, 2) / 2).masked_fill(
            torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf
        )
        mixed = (scores.softmax(2) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ block.out.weight.T + block.out.bias
        h = (
            F.layer_norm(x, (8,), block.norm2.weight, block.norm2.bias, 1e-5) @ block.up.weight.T
            + block.up.bias
        )
        x = x + (h * torch.sigmoid(1.702 * h)) @ block.down.weight.T + block.down.bias
    last = F.layer_norm(x, (8,), model.text.norm.weight, model.text.norm.bias, 1e-5)[-1]
    return F.normalize(model.text_proj.weight @ last, dim=0)


@pytest.mark.parametrize("specific", [False, True])
def test_features_and_gradients_are_those_of_the_formula(bpe: Tokenizer, specific: bool) -> None:
    model = small_clip(bpe)
    shape = (2, 3, 8) if specific else (3, 8)
    context = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    ours = text_feats(model, of(bpe, "end"), context)
    wanted = torch.stack(
        [by_hand(model, bpe, context[k] if specific else context, name) for k, name in enumerate(NAMES)]
    )
    assert ours.detach() == pytest.approx(wanted.detach(), abs=1e-5)
    (one,) = torch.autograd.grad((ours * weights).sum(), context)
    (two,) = torch.autograd.grad((wanted * weights).sum(), context)
    assert one == pytest.approx(two, abs=1e-5)
    assert one.abs().min() > 0


def test_the_vectors_of_words_give_the_features_of_these_words(bpe: Tokenizer) -> None:
    model = small_clip(bpe)
    ids = bpe.ids("photo of a")
    assert len(ids) == 3
    feats = text_feats(model, of(bpe, "end"), model.words.words.weight[ids])
    texts, mask = bpe.encode([f"photo of a {name} ." for name in NAMES], 12)
    batch = Batch({"text": Stream(texts, mask.bool())}, same=torch.arange(2))
    assert feats.detach() == pytest.approx(Outputs(model, batch, grad=False).text_feat, abs=1e-5)


@pytest.mark.parametrize("kind", ["albef", "siglip"])
def test_other_text_encoders_learn_a_context_too(wordpiece: Tokenizer, kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "max_text_length": 12}
    if kind == "albef":
        widths = {"vision_width": 8, "vision_layers": 1, "vision_heads": 2, "text_width": 8, "text_layers": 1}
        model = Albef.from_spec(
            {**sizes, **widths, "fusion_layers": 1, "text_heads": 2, "embed_dim": 6}, wordpiece
        )
    else:
        towers = {
            "vision_width": 8,
            "vision_layers": 1,
            "vision_heads": 2,
            "text_width": 8,
            "text_layers": 1,
            "text_heads": 2,
        }
        model = Siglip.from_spec({**sizes, **towers}, wordpiece)
    model.eval().requires_grad_(False)
    width = word_vectors(model).weight.shape[1]
    context = torch.randn(3, width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    feats = text_feats(model, of(wordpiece, "end"), context)
    feats[:, 0].sum().backward()
    assert context.grad is not None
    assert context.grad.abs().amax(1).min() > 0
    moved = text_feats(model, of(wordpiece, "end"), 2 * context.flip(1))
    assert (moved - feats).abs().max() > 1e-5


def test_what_cannot_be_learned_is_said(bpe: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match="class 'red ring' with 9 context vectors has 13 tokens, but there are 12 positions"
    ):
        prompts_of(bpe, NAMES, 9, 12, "end")
    model = small_clip(bpe)
    at = torch.zeros(1, 4, dtype=torch.bool)
    with (
        pytest.raises(ValueError, match="looks its words up 0 times"),
        words_replaced(model, at, torch.zeros(1, 4, 8)),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"in the shape \(2, 12\), not \(1, 4\)"),
        words_replaced(model, at, torch.zeros(1, 4, 8)),
    ):
        text_feats(model, of(bpe, "end"), torch.zeros(3, 8))
