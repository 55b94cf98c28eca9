"""CoCa against a second implementation, written from the paper's figure 2: outputs, losses and gradients to 1e-5."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts
from vlpipe.models import folder
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.coca import Coca

START, END, WORDS, HEADS = 2, 3, 37, 2
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "start": START,
    "end": END,
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "heads": HEADS,
    "vision_layers": 2,
    "vision_mlp": 40,
    "unimodal_layers": 2,
    "multimodal_layers": 2,
    "text_mlp": 24,
    "max_text_length": 12,
    "queries": 5,
}


def coca(**changes: Any) -> Coca:
    torch.manual_seed(0)
    model: Coca = noisy(Coca(**SIZES | changes), but="temp")
    return model


# The second implementation: functions of a dict of weights, without modules of the package.


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]


def attend(w: dict[str, Tensor], at: str, x: Tensor, context: Tensor, sees: Tensor | None = None) -> Tensor:
    """One head at a time; sees: (B, queries, keys) bool."""
    rows = w[f"{at}qkv.weight"].chunk(3), w[f"{at}qkv.bias"].chunk(3)
    q, k, v = (y @ m.t() + b for y, m, b in zip((x, context, context), *rows, strict=True))
    heads = []
    for q_, k_, v_ in zip(*(part.chunk(HEADS, -1) for part in (q, k, v)), strict=True):
        scores = q_ @ k_.transpose(1, 2) / q_.shape[-1] ** 0.5
        if sees is not None:
            scores = scores.masked_fill(~sees, -1e30)
        heads.append(scores.softmax(-1) @ v_)
    return linear(w, f"{at}out", torch.cat(heads, -1))


def layer(
    w: dict[str, Tensor], at: str, x: Tensor, sees: Tensor | None, image: Tensor | None = None
) -> Tensor:
    own = norm(w, f"{at}norm1", x, 1e-6)
    x = x + attend(w, at, own, own, sees)
    if image is not None:
        x = x + attend(w, f"{at}cross.", norm(w, f"{at}cross_norm", x, 1e-6), image)
    return x + linear(w, f"{at}down", F.gelu(linear(w, f"{at}up", norm(w, f"{at}norm2", x, 1e-6))))


def pooled(w: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    queries = w[f"{name}_pool.queries"].expand(len(tokens), -1, -1)
    return norm(w, f"{name}_norm", attend(w, f"{name}_pool.attention.", queries, tokens), 1e-5)


def second(
    w: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor, parallel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Image and text features (B, E), logits (B, L, V). The text is one padded to its end, [CLS] after the padding."""
    kernel = w["vision.patch.weight"].view(-1, 3, 8, 8)
    x = F.conv2d(pixels, kernel, w["vision.patch.bias"], stride=8).flatten(2).transpose(1, 2)
    x = x + w["vision.positions"]
    for i in range(2):
        x = layer(w, f"vision.encoder.blocks.{i}.", x, None)
    tokens = norm(w, "vision.encoder.norm", x, 1e-6)
    captioning = pooled(w, "caption", tokens)
    contrast = pooled(w, "contrast", tokens if parallel else captioning)[:, 0]
    length = ids.shape[1]
    words = w["words.words.weight"][ids] + w["words.positions.weight"][:length]
    words = torch.cat([words, w["cls"].expand(len(ids), 1, -1)], 1)
    sees = torch.zeros(len(ids), length + 1, length + 1, dtype=torch.bool)
    for b in range(len(ids)):
        for i in range(length + 1):
            for j in range(i + 1):
                sees[b, i, j] = i == j or bool(mask[b, j]) if j < length else True
    for i in range(2):
        words = layer(w, f"unimodal.{i}.", words, sees)
    text = norm(w, "cls_norm", words[:, -1], 1e-5)
    words = words[:, :-1]
    for i in range(2):
        words = layer(w, f"multimodal.{i}.", words, sees[:, :-1, :-1], captioning)
    logits = norm(w, "text_norm", words, 1e-5) @ w["word_head.weight"].t()
    return F.normalize(contrast, dim=-1), F.normalize(text, dim=-1), logits


def loss_of(
    w: dict[str, Tensor], image: Tensor, text: Tensor, logits: Tensor, ids: Tensor, mask: Tensor
) -> Any:
    """(contrast, caption), lambda 1 and 2: the sum of both directions per pair, and the mean over predicted tokens."""
    contrast = torch.zeros(())
    for rows in (image @ text.t() / w["temp"], text @ image.t() / w["temp"]):
        contrast = contrast - rows.log_softmax(1).diagonal().mean()
    there = mask[:, 1:]
    caption = -logits[:, :-1].log_softmax(-1)[there].gather(1, ids[:, 1:][there][:, None]).mean()
    return contrast, 2 * caption


@pytest.mark.parametrize("pooling", ["cascade", "parallel"])
def test_outputs_losses_and_all_gradients_are_those_of_the_second_implementation(pooling: str) -> None:
    model = coca(pooling=pooling)
    w = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    pixels, (ids, mask) = torch.randn(PIXELS), texts(WORDS, END)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    image, text, logits = second(w, pixels, ids, mask, pooling == "parallel")
    torch.testing.assert_close(out.image_feat, image, **TOLERANCE)
    torch.testing.assert_close(out.text_feat, text, **TOLERANCE)
    torch.testing.assert_close(model.predict(out.decoder_hidden)[mask], logits[mask], **TOLERANCE)
    lm = Lm()
    lm.bind(model)
    terms = InfoNce()(out)["infonce"], lm(out)["lm"]
    found = [2 * term.total / term.count for term in terms]  # the weights of workflows/coca.yaml
    wanted = loss_of(w, image, text, logits, ids, mask)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    sum(found).backward()
    sum(wanted).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, w[name].grad, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


def test_a_decoder_that_knows_nothing_costs_the_logarithm_of_its_words() -> None:
    """And features that are all alike cost that of the batch."""
    model = coca()
    model.word_head.weight.data.zero_()
    lm = Lm()
    lm.bind(model)
    pixels, (ids, mask) = torch.randn(PIXELS), texts(WORDS, END)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    term = lm(out)["lm"]
    assert term.count == int(mask[:, 1:].sum())
    assert (term.total / term.count).item() == pytest.approx(math.log(WORDS), rel=1e-5)
    alike = F.normalize(torch.ones(5, 16), dim=1)
    features = {"image_feat": alike, "text_feat": alike}
    even = Outputs.of_features(model, Batch(streams={}, same=torch.arange(5)), features)
    assert (InfoNce()(even)["infonce"].total / 5).item() == pytest.approx(math.log(5), rel=1e-5)


def test_words_see_neither_later_words_nor_the_text_s_embedding() -> None:
    model = coca()
    pixels, (ids, mask) = torch.randn(PIXELS), texts(WORDS, END)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    changed = ids.clone()
    changed[:, 2] = 9
    other = outputs(model, image=Stream(pixels), text=Stream(changed, mask))
    torch.testing.assert_close(other.decoder_hidden[:, :2], out.decoder_hidden[:, :2])
    assert not torch.allclose(other.decoder_hidden[:, 2], out.decoder_hidden[:, 2])
    assert not torch.allclose(other.text_feat, out.text_feat)
    model.cls.data.add_(torch.randn(16))
    again = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    torch.testing.assert_close(again.decoder_hidden, out.decoder_hidden)
    assert not torch.allclose(again.text_feat, out.text_feat)


def test_only_the_upper_half_sees_the_image() -> None:
    model = coca()
    ids, mask = texts(WORDS, END)
    one, two = (outputs(model, image=Stream(torch.randn(PIXELS)), text=Stream(ids, mask)) for _ in range(2))
    assert torch.equal(one.unimodal_hidden, two.unimodal_hidden)
    assert torch.equal(one.text_feat, two.text_feat)
    assert not torch.allclose(one.decoder_hidden[:, 0], two.decoder_hidden[:, 0])


def test_padding_and_order_change_nothing() -> None:
    model = coca()
    lm = Lm()
    lm.bind(model)
    pixels, (ids, mask) = torch.randn(PIXELS), texts(WORDS, END)

    def losses(pixels: Tensor, ids: Tensor, mask: Tensor) -> list[float]:
        out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
        terms = InfoNce()(out)["infonce"], lm(out)["lm"]
        return [(term.total / term.count).item() for term in terms]

    found = losses(pixels, ids, mask)
    wide = F.pad(ids.masked_fill(~mask, 8), (0, 2), value=6), F.pad(mask, (0, 2))
    assert losses(pixels, *wide) == pytest.approx(found, rel=1e-5)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert losses(pixels[order], ids[order], mask[order]) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 10, [4, 1, 3, 2]])
def test_steps_give_what_the_whole_text_gives(sizes: list[int]) -> None:
    model = coca()
    ids, _ = texts(WORDS, END)
    pixels = torch.randn(PIXELS)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, torch.ones_like(ids, dtype=torch.bool)))
    cache = model.start_text(out.image_tokens, 10)
    parts = [model.step_text(part, cache) for part in ids.split(sizes, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), out.decoder_hidden, **TOLERANCE)


def test_it_writes_the_likeliest_words() -> None:
    """Greedy decoding, against the whole text anew for each word; beams of one image are of that image."""
    model = coca()
    images = outputs(model, image=Stream(torch.randn(PIXELS))).image_tokens.detach()
    found = sample(model, images, max_length=6)
    for row, image in enumerate(images):
        ids = [START]
        for _ in range(6):
            text = Stream(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
            out = Outputs(
                model, Batch({"text": text}, same=torch.zeros(1)), given={"image_tokens": image[None]}
            )
            logits = model.predict(out.decoder_hidden)[0, -1]
            logits[START] = -math.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == END:
                break
        assert found[row] == [i for i in ids[1:] if i != END]
    assert len(beam(model, images, num_beams=3, max_length=6)) == 5


def test_a_saved_model_goes_on_with_larger_images(tmp_path: Path) -> None:
    folder.save(coca(), tmp_path)
    larger = folder.load(tmp_path, image_size=48)
    assert larger.vision.positions.shape == (1, 36, 16)
    same = folder.load(tmp_path)
    assert all(torch.equal(value, coca().state_dict()[name]) for name, value in same.state_dict().items())


def test_the_temperature_stays_above_a_hundredth() -> None:
    model = coca()
    assert model.temp.item() == pytest.approx(0.07)
    model.temp.data.fill_(-1.0)
    model.constrain()
    assert model.temp.item() == pytest.approx(0.01)


def test_other_poolings_are_refused() -> None:
    with pytest.raises(ValueError, match="model: pooling is cascade or parallel, got 'first'"):
        coca(pooling="first")


@pytest.mark.parametrize(
    ("sizes", "image", "text"),
    [
        ({}, 86e6, 297e6),
        ({"width": 1024, "heads": 16, "vision_layers": 24}, 303e6, 484e6),
        (
            {
                "width": 1408,
                "heads": 16,
                "vision_layers": 40,
                "vision_mlp": 6144,
                "unimodal_layers": 18,
                "multimodal_layers": 18,
            },
            1.0e9,
            1.1e9,
        ),
    ],
    ids=["base", "large", "coca"],
)
def test_sizes_of_the_paper(sizes: dict[str, Any], image: float, text: float) -> None:
    """Table 1: parameters of the image encoder and of the decoder, with 64,000 words; of the largest, one digit is told."""
    with torch.device("meta"):
        model = Coca(vocab_size=64000, start=0, end=1, **sizes)
    of = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    decoder = of["words"] + of["unimodal"] + of["multimodal"] + of["word_head"]
    rel = 0.005 if image < 1e9 else 0.08
    assert of["vision"] == pytest.approx(image, rel=rel)
    assert decoder == pytest.approx(text, rel=rel)
