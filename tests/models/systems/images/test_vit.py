"""ViT equals transformers' with the same weights; what its head, dropout and finetuning do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models import folder
from vlpipe.models.blocks.patches import resize_positions
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.layouts.images import vit
from vlpipe.models.layouts.table import to_ours
from vlpipe.models.objectives.images.classify import Classify
from vlpipe.models.systems.images.vit import Vit

LABELS = torch.tensor([3, 0, 6, 6, 1])
TINY: dict[str, Any] = {
    "num_classes": 7,
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "layers": 2,
    "heads": 2,
}


def theirs(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 7,
    }
    return noisy(ViTForImageClassification(ViTConfig(**{**sizes, **changes})), but="nothing")


def test_it_equals_transformers(tmp_path: Path) -> None:
    reference = theirs()
    model = through_a_folder(reference, tmp_path)
    pixels = torch.randn(PIXELS)
    wanted = reference(pixels, labels=LABELS)
    out = outputs(model, image=Stream(pixels), label=Stream(LABELS))
    torch.testing.assert_close(out.logits, wanted.logits, **TOLERANCE)
    term = Classify()(out)["classify"]
    torch.testing.assert_close(term.total / term.count, wanted.loss, **TOLERANCE)
    (term.total / term.count).backward()
    wanted.loss.backward()
    own, other = vit.entries(model.config, ""), dict(reference.named_parameters())
    grads = to_ours(list(own), {name: p.grad for name, p in other.items()}, "")
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], **TOLERANCE, msg=name)


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match=r"no hidden layer before the classes \(head: mlp\)"):
        Vit(**TINY).export(tmp_path / "none")


def test_another_network_is_refused(tmp_path: Path) -> None:
    theirs(intermediate_size=96, hidden_act="relu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this ViT is not the paper's"):
        folder.load(tmp_path)


def test_another_size_interpolates_positions_as_transformers_does(tmp_path: Path) -> None:
    reference = theirs()
    reference.save_pretrained(tmp_path)
    model = folder.load(tmp_path, image_size=48).eval()
    pixels = torch.randn(5, 3, 48, 48)
    with torch.no_grad():
        wanted = reference(pixels, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(outputs(model, image=Stream(pixels)).logits, wanted, **TOLERANCE)


def test_the_head_of_pretraining_has_a_hidden_layer_and_that_of_finetuning_starts_at_zero(
    tmp_path: Path,
) -> None:
    """Section 3.2."""
    model = noisy(Vit(**TINY))
    out = outputs(model, image=Stream(torch.randn(PIXELS)))
    hidden = torch.tanh(out.class_token @ model.hidden.weight.t() + model.hidden.bias)
    torch.testing.assert_close(out.logits, hidden @ model.classifier.weight.t() + model.classifier.bias)
    folder.save(model, tmp_path)
    for changes in ({"num_classes": 4}, {}):
        tuned = folder.load(tmp_path, head="linear", image_size=48, **changes).eval()
        assert tuned.hidden is None
        assert not tuned.classifier.weight.any()
        assert tuned.classifier.weight.shape == (changes.get("num_classes", 7), 16)
        wanted = resize_positions(model.patches.positions.detach(), 37)
        torch.testing.assert_close(tuned.patches.positions.detach(), wanted)
        assert torch.equal(tuned.vision.blocks[1].up.weight, model.vision.blocks[1].up.weight)
    again = folder.load(tmp_path)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(
        ValueError, match=r"of another shape: classifier.weight \(7, 16\) instead of \(4, 16\)"
    ):
        folder.load(tmp_path, num_classes=4)
    with pytest.raises(ValueError, match="head is mlp or linear, got 'none'"):
        Vit(**{**TINY, "head": "none"})


def test_a_finetuned_head_is_kept(tmp_path: Path) -> None:
    model = noisy(Vit(**TINY, head="linear"))
    folder.save(model, tmp_path)
    assert torch.equal(folder.load(tmp_path, image_size=48).classifier.weight, model.classifier.weight)
    assert not folder.load(tmp_path, num_classes=3).classifier.weight.any()


def test_dropout_is_in_training_alone_and_at_each_of_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the embeddings, the output of attention, the hidden and the last layer of the MLP."""
    images = Stream(torch.randn(PIXELS))
    plain, dropped = noisy(Vit(**TINY)), Vit(**TINY, dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(
        outputs(plain.eval(), image=images).logits, outputs(dropped.eval(), image=images).logits
    )
    one, other = (outputs(dropped.train(), image=images).logits for _ in range(2))
    assert not torch.equal(one, other)
    calls: list[float] = []

    def counted(x: Any, p: float, training: bool) -> Any:
        calls.append(p)
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", counted)
    assert outputs(dropped, image=images).logits.shape == (5, 7)
    assert calls == [0.5] * (1 + 3 * TINY["layers"])


def test_images_without_a_label_have_no_loss() -> None:
    model = noisy(Vit(**TINY))
    labels = LABELS.masked_fill(torch.tensor([True, False, False, True, False]), IGNORE)
    out = outputs(model, image=Stream(torch.randn(PIXELS)), label=Stream(labels))
    found: Any = Classify()(out)
    assert int(found["classify"].count) == 3 == int(Classify().counts(out.batch)["classify"])
    wanted = -out.logits.log_softmax(1)[[1, 2, 4], [0, 6, 1]].sum()
    torch.testing.assert_close(found["classify"].total, wanted)
    right = sum(int(out.logits[k].argmax() == label) for k, label in ((1, 0), (2, 6), (4, 1)))
    assert (int(found["classify_accuracy"].total), int(found["classify_accuracy"].count)) == (right, 3)
