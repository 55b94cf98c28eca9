"""SigLIP equals transformers' with the same weights: features, loss, gradients, and back again; its loss by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from tests.models.parity import TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.sigmoid import Sigmoid
from vlpipe.models.systems.image_text.siglip import Siglip

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PAD = 1
TINY: dict[str, Any] = {
    "vocab_size": 50,
    "pad": PAD,
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 12,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 12,
}


def theirs(**changes: Any) -> Any:
    """Towers of different feed-forward widths, as in so400m, and texts narrower than images."""
    text = SIZES | {"hidden_size": 24, "intermediate_size": 72, "projection_size": 32}
    text |= {"vocab_size": 99, "max_position_embeddings": 16, "pad_token_id": PAD}
    image = SIZES | {"image_size": 32, "patch_size": 8, "intermediate_size": 100} | changes
    return noisy(SiglipModel(SiglipConfig(text_config=text, vision_config=image)), but="nothing")


def padded(ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """What their tokenizer writes with padding="max_length"."""
    return torch.nn.functional.pad(ids.masked_fill(~mask, PAD), (0, length - ids.shape[1]), value=PAD)


@pytest.mark.parametrize("size", [32, 37])
def test_it_equals_transformers(tmp_path: Path, size: int) -> None:
    """Also where patches do not fill the image, as in so400m at 384 pixels."""
    reference = theirs(image_size=size)
    model = through_a_folder(reference, tmp_path / "theirs")
    pixels, (ids, mask) = torch.randn(5, 3, size, size), texts(99, 3)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    wanted = reference(input_ids=padded(ids, mask, 16), pixel_values=model.rescaled(pixels), return_loss=True)
    torch.testing.assert_close(out.image_feat, wanted.image_embeds, **TOLERANCE)
    torch.testing.assert_close(out.text_feat, wanted.text_embeds, **TOLERANCE)
    term = Sigmoid()(out)["sigmoid"]
    loss = term.total / term.count
    torch.testing.assert_close(loss, wanted.loss, **TOLERANCE)
    loss.backward()
    wanted.loss.backward()
    image, text = reference.vision_model, reference.text_model
    query, key, value = (
        getattr(text.encoder.layers[1].self_attn, f"{name}_proj").weight.grad for name in "qkv"
    )
    for own, other in (
        (model.logit_scale.grad, reference.logit_scale.grad),
        (model.logit_bias.grad, reference.logit_bias.grad),
        (model.vision.patch.weight.grad, image.embeddings.patch_embedding.weight.grad.flatten(1)),
        (model.vision.positions.grad[0], image.embeddings.position_embedding.weight.grad),
        (model.head.pool.queries.grad, image.head.probe.grad),
        (model.head.pool.attention.qkv.weight.grad, image.head.attention.in_proj_weight.grad),
        (model.text.blocks[1].qkv.weight.grad, torch.cat([query, key, value])),
        (model.words.words.weight.grad, text.embeddings.token_embedding.weight.grad),
        (model.text_proj.bias.grad, text.head.bias.grad),
    ):
        torch.testing.assert_close(own, other, **TOLERANCE)


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = SiglipModel.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_folder_is_opened_for_larger_images(tmp_path: Path) -> None:
    """Positions are interpolated: a table that is the same everywhere stays so, corners keep their side."""
    reference = theirs()
    table = reference.vision_model.embeddings.position_embedding.weight.data
    table[:, 0], table[:, 1] = 0.3, torch.arange(16) % 4
    reference.save_pretrained(tmp_path)
    positions = Siglip.load(tmp_path, image_size=64).vision.positions[0].detach()
    assert positions.shape == (64, 32)
    torch.testing.assert_close(positions[:, 0], torch.full((64,), 0.3))
    columns = positions[:, 1].view(8, 8)
    torch.testing.assert_close(columns, columns[:1].expand(8, -1))
    assert (columns[0].diff() > 0).all()


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    theirs(hidden_act="relu", vision_use_head=False).save_pretrained(tmp_path)
    said = "not as published: vision hidden_act: relu instead of gelu_pytorch_tanh, vision_use_head: False"
    with pytest.raises(ValueError, match=said):
        Siglip.load(tmp_path)


def test_pixels_are_seen_from_minus_one_to_one() -> None:
    """Black and white, as the loader normalises them."""
    model = Siglip(**TINY)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    for value, wanted in ((0.0, -1.0), (1.0, 1.0)):
        pixels = (torch.full((2, 3, 16, 16), value) - mean) / std
        torch.testing.assert_close(model.rescaled(pixels), torch.full_like(pixels, wanted), **TOLERANCE)


def test_padding_of_the_batch_changes_nothing_and_order_does_not_matter() -> None:
    model = noisy(Siglip(**TINY), but="nothing")
    pixels, (ids, mask) = torch.randn(5, 3, 16, 16), texts(50, 3)
    loss = total(outputs(model, image=Stream(pixels), text=Stream(ids, mask)))
    other = ids.masked_fill(~mask, 7)
    wide = Stream(torch.nn.functional.pad(other, (0, 2)), torch.nn.functional.pad(mask, (0, 2)))
    torch.testing.assert_close(total(outputs(model, image=Stream(pixels), text=wide)), loss)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = outputs(model, image=Stream(pixels[order]), text=Stream(ids[order], mask[order]))
    torch.testing.assert_close(total(moved), loss)


def total(out: Outputs) -> Tensor:
    found = Sigmoid()(out)["sigmoid"]
    return found.total / found.count


def of_features(image: Tensor, text: Tensor, same: Tensor | None = None, **options: Any) -> Any:
    model = Siglip(**TINY)
    model.logit_scale.data.fill_(math.log(3.0))
    model.logit_bias.data.fill_(-1.5)
    batch = Batch(streams={}, same=torch.arange(len(image)) if same is None else same)
    return Sigmoid(**options)(Outputs.of_features(model, batch, {"image_feat": image, "text_feat": text}))


@pytest.mark.parametrize("share", [False, True])
def test_the_loss_is_that_of_each_pair_alone(share: bool) -> None:
    """Equation 1, one pair at a time; rows 0 and 3 show one picture."""
    image, text = (torch.nn.functional.normalize(torch.randn(4, 16), dim=1) for _ in range(2))
    same = torch.tensor([5, 6, 7, 5])
    found = of_features(image, text, same, share=share)
    wanted = 0.0
    for i in range(4):
        for j in range(4):
            z = 1 if i == j or (share and {i, j} == {0, 3}) else -1
            wanted += math.log1p(math.exp(-z * (3.0 * (image[i] @ text[j]).item() - 1.5)))
    assert found["sigmoid"].total.item() == pytest.approx(wanted, rel=1e-5)
    assert found["sigmoid"].count == 4
    assert float(found["temp"]) == pytest.approx(1 / 3)
    assert found["logit_bias"].item() == -1.5


def test_the_gradient_by_hand() -> None:
    """d/dx_i = sum_j t (sigmoid(l_ij) - [i = j]) y_j, and the same sum without t and y_j for the bias."""
    image, text = (torch.nn.functional.normalize(torch.randn(4, 16), dim=1) for _ in range(2))
    image.requires_grad_()
    found = of_features(image, text)
    found["sigmoid"].total.backward()
    with torch.no_grad():
        error = (3.0 * image @ text.t() - 1.5).sigmoid() - torch.eye(4)
        torch.testing.assert_close(image.grad, 3.0 * error @ text)


def test_it_starts_as_the_paper_says() -> None:
    """t = 10, b = -10: unrelated pairs cost next to nothing, and the loss is about that of the positives."""
    model = Siglip(**TINY)
    assert model.temp.item() == pytest.approx(0.1)
    assert model.logit_bias.item() == -10.0
    unrelated = torch.eye(8, 16)
    batch = Batch(streams={}, same=torch.arange(8))
    features = {"image_feat": unrelated, "text_feat": unrelated.roll(8, 1)}
    term = Sigmoid()(Outputs.of_features(model, batch, features))["sigmoid"]
    assert (term.total / 8).item() == pytest.approx(
        10 + math.log1p(math.exp(-10)) + 7 * math.log1p(math.exp(-10)), rel=1e-5
    )


def test_defaults_are_those_of_the_published_base_model() -> None:
    """As many parameters as transformers' default configuration, google/siglip-base-patch16-224."""
    with torch.device("meta"):
        ours, reference = Siglip(vocab_size=32000, pad=1), SiglipModel(SiglipConfig())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
