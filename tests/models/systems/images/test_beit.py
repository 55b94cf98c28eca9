"""BEiT equals transformers' with the same weights; its start, its masks and where its codes come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BeitConfig, BeitForMaskedImageModeling

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models import folder
from vlpipe.models.interface.batch import Stream
from vlpipe.models.layouts.images.beit import masked_codes
from vlpipe.models.layouts.table import to_ours
from vlpipe.models.objectives.images.masked_codes import MaskedImageCodes
from vlpipe.models.systems.images.beit import Beit

TINY: dict[str, Any] = {
    "num_codes": 11,
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "layers": 2,
    "heads": 2,
}
PATCHES = {"use": "patches:PatchCentroids", "num_codes": 11, "patch_size": 4}


def theirs(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
    }
    config = BeitConfig(**{**sizes, **changes}, attn_implementation="eager")
    return noisy(BeitForMaskedImageModeling(config), but="nothing")


def hidden(num: int = 5) -> Tensor:
    masked = torch.rand(num, 16) < 0.4
    masked[:, 3], masked[:, 4] = True, False
    return masked


def image(masked: Tensor | None = None, codes: Tensor | None = None) -> Stream:
    extra = {} if codes is None else {"codes": codes}
    if masked is None:
        return Stream(torch.randn(PIXELS), extra=extra)
    return Stream(torch.randn(PIXELS), extra={**extra, "masked": masked}, target={"masked": masked})


RELEASED: dict[str, Any] = {}
PAPER = {
    "use_shared_relative_position_bias": False,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 0.0,
}


@pytest.mark.parametrize("changes", [PAPER, RELEASED], ids=["paper", "released"])
def test_it_equals_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = through_a_folder(reference, tmp_path)
    assert (model.config.position, model.config.layer_scale) == (
        ("learned", None) if changes else ("relative", 0.1)
    )
    masked, codes = hidden(), torch.randint(0, 11, (5, 16))
    pixels = image(masked, codes)
    wanted = reference(pixels.data, bool_masked_pos=masked, labels=codes[masked])
    out = outputs(model, image=pixels)
    torch.testing.assert_close(model.predict_codes(out.code_hidden), wanted.logits, **TOLERANCE)
    term = MaskedImageCodes()(out)["mim"]
    assert int(term.count) == int(masked.sum()) == int(MaskedImageCodes().counts(out.batch)["mim"])
    torch.testing.assert_close(term.total / term.count, wanted.loss, **TOLERANCE)
    (term.total / term.count).backward()
    wanted.loss.backward()
    table, named = list(masked_codes.entries(model.config, "")), dict(reference.named_parameters())
    grads = to_ours(table, {name: p.grad for name, p in named.items()}, "")
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize("changes", [PAPER, RELEASED], ids=["paper", "released"])
def test_it_opens_in_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = BeitForMaskedImageModeling.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    "changes",
    [
        {"use_absolute_position_embeddings": True},
        {"use_mean_pooling": False},
        {"use_shared_relative_position_bias": False},
        {"intermediate_size": 64},
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint: wanted"):
        folder.load(tmp_path)


@pytest.mark.parametrize("position", ["learned", "relative"])
def test_hidden_pixels_do_not_matter(position: Any) -> None:
    model, masked = noisy(Beit(**TINY, position=position, layer_scale=0.1)), hidden()
    one = image(masked)
    patch_is_hidden = masked.view(5, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = Stream(torch.where(patch_is_hidden, torch.randn(PIXELS), one.data), extra=one.extra)
    first, second = (outputs(model, image=stream).code_hidden for stream in (one, other))
    assert torch.equal(first, second)
    whole = outputs(model, image=Stream(one.data))
    assert not torch.allclose(first, whole.code_hidden)
    assert whole.image_feat.shape == (5, 16)
    torch.testing.assert_close(whole.image_feat.norm(dim=1), torch.ones(5))


def test_weights_start_as_the_paper_says() -> None:
    """Within 0.02; the last matrices of layer l are divided by sqrt(2 l) (section 2.5)."""
    model = Beit(**{**TINY, "width": 64, "layers": 3})
    for number, block in enumerate(model.encoder.blocks, 1):
        for linear in (block.qkv, block.up):
            assert 0.0195 < float(linear.weight.detach().abs().max()) <= 0.02
        for linear in (block.out, block.down):
            assert 0.0195 < float(linear.weight.detach().abs().max()) * math.sqrt(2 * number) <= 0.0201
    assert block.scale1 is None
    assert float(model.positions.detach().abs().max()) <= 0.02
    scaled = Beit(**TINY, layer_scale=0.1, position="relative")
    assert scaled.encoder.blocks[0].scale2.tolist() == pytest.approx([0.1] * 16)
    assert not scaled.relative.table.any()
    assert scaled.positions is None


def test_the_first_place_alone_is_that_of_all() -> None:
    model = noisy(Beit(**TINY, layer_scale=0.1, position="relative"))
    x, bias = torch.randn(2, 17, 16), model.relative()
    torch.testing.assert_close(model.encoder(x, bias, first=True), model.encoder(x, bias)[:, :1])


def test_codes_are_those_of_a_column_or_of_a_codebook() -> None:
    codes = torch.randint(0, 11, (5, 16))
    model = Beit(**TINY)
    assert torch.equal(outputs(model, image=image(codes=codes)).image_codes, codes)
    assert model.streams()["image"] == {
        "use": "image_codes:ImageWithCodes",
        "size": 32,
        "num_codes": 11,
        "num_places": 16,
    }
    frozen = Beit(**TINY, codebook=PATCHES)
    assert frozen.streams()["image"]["second_size"] == 16
    second = torch.randn(5, 3, 16, 16)
    out = outputs(frozen, image=Stream(torch.randn(PIXELS), extra={"second": second}))
    with pytest.raises(
        ValueError, match=r"PatchCentroids: no weights were loaded; name them in `init_parts`"
    ):
        assert out.image_codes is None
    frozen.codebook.centroids.data.uniform_()
    assert torch.equal(out.image_codes, frozen.codebook(second))
    assert not any(p.requires_grad for p in frozen.codebook.parameters())
    with pytest.raises(ValueError, match="the codebook has 11 codes, num_codes is 12"):
        Beit(**{**TINY, "num_codes": 12}, codebook=PATCHES)
    with pytest.raises(ValueError, match="position is learned or relative, got 32, 8, 'none'"):
        Beit(**TINY, position="none")  # type: ignore[arg-type]


def test_accuracy_is_of_hidden_patches_alone() -> None:
    model, masked = noisy(Beit(**TINY)), hidden()
    codes = torch.randint(0, 11, (5, 16))
    out = outputs(model, image=image(masked, codes))
    found: Any = MaskedImageCodes()(out)
    logits = model.predict_codes(out.code_hidden)
    right = sum(
        int(logits[i, j].argmax() == codes[i, j]) for i in range(5) for j in range(16) if masked[i, j]
    )
    assert int(found["mim_accuracy"].total) == right
    wanted = -logits.log_softmax(-1).gather(2, codes[:, :, None])[:, :, 0][masked].sum()
    torch.testing.assert_close(found["mim"].total, wanted)
