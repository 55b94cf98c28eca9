"""CLIP equals transformers' with the same weights: features, loss, gradients, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.infonce import InfoNce
from vlpipe.models.systems.image_text.clip import Clip

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
END = 3


def theirs() -> Any:
    text = {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": END, "bos_token_id": 2}
    image = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=SIZES | text, vision_config=SIZES | image, projection_dim=16)
    return noisy(CLIPModel(config), but="logit_scale")


def test_it_equals_transformers(tmp_path: Path) -> None:
    reference = theirs()
    model = through_a_folder(reference, tmp_path / "theirs")
    pixels, (ids, mask) = torch.randn(PIXELS), texts(99, END)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    wanted = reference(input_ids=ids, pixel_values=pixels, attention_mask=mask.long(), return_loss=True)
    torch.testing.assert_close(out.image_feat, wanted.image_embeds, **TOLERANCE)
    torch.testing.assert_close(out.text_feat, wanted.text_embeds, **TOLERANCE)
    term = InfoNce()(out)["infonce"]
    loss = term.total / term.count
    torch.testing.assert_close(loss, wanted.loss, **TOLERANCE)
    loss.backward()
    wanted.loss.backward()
    torch.testing.assert_close(model.logit_scale.grad, reference.logit_scale.grad, **TOLERANCE)
    torch.testing.assert_close(
        model.text.blocks[0].up.weight.grad,
        reference.text_model.encoder.layers[0].mlp.fc1.weight.grad,
        **TOLERANCE,
    )
    torch.testing.assert_close(
        model.patches.positions.grad[0],
        reference.vision_model.embeddings.position_embedding.weight.grad,
        **TOLERANCE,
    )


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = CLIPModel.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="export: Clip has no kind 'captioner'; there are model"):
        Clip(vocab_size=20, end=1, **TINY).export(tmp_path / "none", "captioner")


TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 8,
    "embed_dim": 8,
}


def test_the_end_token_is_read_and_words_after_it_do_not_matter() -> None:
    model = Clip(vocab_size=50, end=END, **TINY).eval()
    ids, pixels = torch.randint(10, 50, (5, 8)), torch.randn(5, 3, 16, 16)
    ids[:, 4] = END
    mask = torch.ones(5, 8, dtype=torch.bool)
    one = outputs(model, image=Stream(pixels), text=Stream(ids, mask)).text_feat
    ids[:, 5:] = 7
    assert torch.equal(outputs(model, text=Stream(ids, mask)).text_feat, one)
    ids[:, 3] = 7
    assert not torch.allclose(outputs(model, text=Stream(ids, mask)).text_feat, one)


def test_a_text_that_was_cut_is_read_at_its_last_word() -> None:
    model = Clip(vocab_size=50, end=END, **TINY).eval()
    ids = torch.randint(10, 50, (5, 8))
    whole = outputs(model, text=Stream(ids, torch.ones(5, 8, dtype=torch.bool))).text_feat
    ids[:, 7] = 9
    assert not torch.allclose(
        outputs(model, text=Stream(ids, torch.ones(5, 8, dtype=torch.bool))).text_feat, whole
    )


def test_the_temperature_stays_above_a_hundredth() -> None:
    model = Clip(vocab_size=50, end=END, **TINY)
    assert float(model.temp) == pytest.approx(0.07)
    model.logit_scale.data.fill_(9.0)
    model.constrain()
    assert float(model.temp) == pytest.approx(0.01)
