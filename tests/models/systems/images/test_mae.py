"""MAE equals transformers' ViTMAE with the same weights and the same hidden patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models.blocks.patches import sincos_positions
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.pixel_mse import PixelMse
from vlpipe.models.systems.images.mae import Mae


def theirs(*, normalise: bool = True) -> Any:
    """Their model with the fixed positions of published checkpoints; the constructor leaves zeros."""
    config = ViTMAEConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=96,
        norm_pix_loss=normalise,
    )
    model = noisy(ViTMAEForPreTraining(config), but="pos")
    model.vit.embeddings.position_embeddings.data = sincos_positions(4, 32)
    model.decoder.decoder_pos_embed.data = sincos_positions(4, 24)
    return model


def hidden_by(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Their rule: the quarter of patches with the least noise is kept. Returns (keep, masked)."""
    keep = noise.argsort(1)[:, :4].sort(1).values
    return keep, torch.ones(5, 16, dtype=torch.bool).scatter(1, keep, False)


@pytest.mark.parametrize("normalise", [True, False])
def test_it_equals_transformers(tmp_path: Path, normalise: bool) -> None:
    reference = theirs(normalise=normalise)
    model = through_a_folder(reference, tmp_path)
    pixels, noise = torch.randn(PIXELS), torch.rand(5, 16)
    keep, masked = hidden_by(noise)
    wanted = reference(pixels, noise=noise)
    out = outputs(model, image=Stream(pixels, extra={"keep": keep}, target={"masked": masked}))
    torch.testing.assert_close(out.pixel_prediction, wanted.logits, **TOLERANCE)
    term = PixelMse(normalise=normalise)(out)["pixel_mse"]
    (term.total / term.count).backward()
    wanted.loss.backward()
    torch.testing.assert_close(term.total / term.count, wanted.loss, **TOLERANCE)
    torch.testing.assert_close(model.mask_token.grad, reference.decoder.mask_token.grad, **TOLERANCE)
    torch.testing.assert_close(
        model.vision.blocks[0].up.weight.grad, reference.vit.layers[0].mlp.fc1.weight.grad, **TOLERANCE
    )


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match="no mask tokens in the encoder"):
        Mae(**TINY, encode_masked=True).export(tmp_path / "none")


TINY: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "decoder_width": 16,
    "decoder_layers": 1,
    "decoder_heads": 2,
}


@pytest.mark.parametrize("encode_masked", [False, True])
def test_hidden_pixels_do_not_reach_the_encoder(encode_masked: bool) -> None:
    model = Mae(**TINY, encode_masked=encode_masked).eval()
    keep, masked = hidden_by(torch.rand(5, 16))
    pixels = torch.randn(PIXELS)
    patch_is_hidden = masked.view(5, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(patch_is_hidden, torch.randn(PIXELS), pixels)
    one, other = (
        outputs(model, image=Stream(x, extra={"keep": keep}, target={"masked": masked}))
        for x in (pixels, changed)
    )
    assert torch.equal(one.pixel_prediction, other.pixel_prediction)
    assert one.image_tokens.shape[1] == (17 if encode_masked else 5)
    seen = torch.where(patch_is_hidden, pixels, torch.randn(PIXELS))
    different = outputs(model, image=Stream(seen, extra={"keep": keep}, target={"masked": masked}))
    assert not torch.allclose(one.pixel_prediction, different.pixel_prediction)


def test_the_loss_over_all_patches_counts_all() -> None:
    model = Mae(**TINY).eval()
    keep, masked = hidden_by(torch.rand(5, 16))
    out = outputs(model, image=Stream(torch.randn(PIXELS), extra={"keep": keep}, target={"masked": masked}))
    hidden, whole = PixelMse(), PixelMse(all_patches=True)
    assert float(hidden(out)["pixel_mse"].count) == 5 * 12 == float(hidden.counts(out.batch)["pixel_mse"])
    assert whole(out)["pixel_mse"].count == 5 * 16 == whole.counts(out.batch)["pixel_mse"]
