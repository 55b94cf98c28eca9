"""ViLT equals transformers' with the same weights; what its streams and heads do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViltConfig, ViltForMaskedLM

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.image_text.vilt import Vilt


def theirs() -> Any:
    config = ViltConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        vocab_size=99,
        max_position_embeddings=16,
    )
    return noisy(ViltForMaskedLM(config), but="nothing")


def test_it_equals_transformers(tmp_path: Path) -> None:
    reference = theirs()
    model = through_a_folder(reference, tmp_path)
    pixels, (ids, mask) = torch.randn(PIXELS), texts(99, 3)
    labels = torch.where(torch.rand(5, 10) < 0.4, ids, IGNORE).masked_fill(~mask, IGNORE)
    wanted = reference(input_ids=ids, pixel_values=pixels, attention_mask=mask.long(), labels=labels)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask, target={"ids": labels}))
    torch.testing.assert_close(model.predict_words(out.word_hidden)[mask], wanted.logits[mask], **TOLERANCE)
    term = MaskedLm()(out)["mlm"]
    torch.testing.assert_close(term.total / term.count, wanted.loss, **TOLERANCE)
    (term.total / term.count).backward()
    wanted.loss.backward()
    embeddings = reference.vilt.embeddings
    for own, other in (
        (model.words.words.weight, embeddings.text_embeddings.word_embeddings.weight),
        (model.patches.positions, embeddings.position_embeddings),
        (model.modality.weight, embeddings.token_type_embeddings.weight),
    ):
        torch.testing.assert_close(own.grad, other.grad, **TOLERANCE)


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = ViltForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def tiny() -> Vilt:
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}
    return noisy(Vilt(vocab_size=99, max_text_length=12, **sizes), but="nothing")


def test_padding_changes_nothing_and_left_out_patches_do() -> None:
    model = tiny()
    pixels, (ids, mask) = torch.randn(PIXELS), texts(99, 3)
    one = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    other = outputs(model, image=Stream(pixels), text=Stream(ids.masked_fill(~mask, 5), mask))
    torch.testing.assert_close(one.match, other.match, rtol=0, atol=1e-6)
    keep = torch.tensor([0, 3, 7, 8, 15]).expand(5, -1)
    some = outputs(model, image=Stream(pixels, extra={"keep": keep}), text=Stream(ids, mask))
    assert some.fused["image"].shape == (5, 6, 16)
    assert not torch.allclose(some.match, one.match)


def test_matching_reads_text_and_image() -> None:
    """The loss of made-up labels is that of its logits; another image gives other logits."""
    model = tiny()
    pixels, (ids, mask) = torch.randn(PIXELS), texts(99, 3)
    labels = torch.tensor([1, 0, 1, 0, 1])
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask, target={"match": labels}))
    found = Match()(out)
    wanted = -out.match.log_softmax(1)[torch.arange(5), labels].sum()
    torch.testing.assert_close(found["match"].total, wanted)
    assert found["match"].count == 5
    other = outputs(model, image=Stream(pixels.flip(0)), text=Stream(ids, mask))
    assert not torch.allclose(other.match, out.match)
