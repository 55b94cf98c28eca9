"""Heads for texts alone: UNIMO's prefix mask entry by entry, what a base must have, and that pretrained weights arrive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlpipe.models.downstream.texts import TextClassifier, TextWriter
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.regions.unimo import Unimo

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "feat_dim": 6,
    "num_objects": 5,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "max_text_length": 12,
    "dropout": 0.0,
    "init_std": 0.3,
    "contrast": False,
}
BASE = {"use": "unimo:Unimo", **SIZES}
BERT = {"use": "bert:Bert", "vocab_size": 40, "width": 24, "layers": 2, "heads": 3, "dropout": 0.0}
LENGTHS, PROMPTS = (9, 6), (4, 3)


def batch(ids: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(1, 40, (2, 9), generator=generator) if ids is None else ids
    mask = torch.arange(9)[None] < torch.tensor(LENGTHS)[:, None]
    return Batch({"text": Stream(found, mask, {"prompt": torch.tensor(PROMPTS)})}, torch.arange(2))


@pytest.fixture
def writer() -> TextWriter:
    torch.manual_seed(0)
    return TextWriter(base=BASE).eval()


def test_a_written_token_is_told_by_the_given_ones_and_those_before_it(writer: TextWriter) -> None:
    """Each token is changed in turn: which states change is the mask, after any number of layers."""
    given = batch()
    before = Outputs(writer, given).decoder_hidden.detach()
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        for place in range(length):
            ids = given.stream("text").data.clone()
            ids[row, place] = ids[row, place] % 39 + 1
            after = Outputs(writer, batch(ids)).decoder_hidden.detach()
            changed = (after != before).any(-1)
            sees = [place < prompt or (at >= place >= prompt) for at in range(length)]
            assert changed[row, :length].tolist() == sees, (row, place)
            assert not changed[1 - row].any()


def test_the_loss_is_of_the_tokens_after_the_prompt(writer: TextWriter) -> None:
    given = batch()
    objective = Lm()
    objective.bind(writer)
    term = objective(Outputs(writer, given))["lm"]
    text, hidden = given.stream("text"), Outputs(writer, given).decoder_hidden
    total, num = torch.zeros(()), 0
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        for at in range(prompt, length):
            logs = writer.predict(hidden[row, at - 1]).log_softmax(-1)
            total, num = total - logs[text.data[row, at]], num + 1
    assert num == 8
    torch.testing.assert_close(term.total, total)
    assert int(term.count) == num


def test_unimo_writes_about_an_image_too() -> None:
    torch.manual_seed(0)
    model = Unimo(**SIZES).eval()
    box = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]]).expand(2, -1, -1)
    regions = Stream(torch.randn(2, 2, 6), torch.ones(2, 2, dtype=torch.bool), {"box": box})
    other = Stream(regions.data + 1, regions.mask, regions.extra)
    text = batch().streams["text"]
    found = [
        Outputs(model, Batch({"text": text, **more}, torch.arange(2))).decoder_hidden
        for more in ({}, {"regions": regions}, {"regions": other})
    ]
    assert all(one.shape == (2, 9, 24) for one in found)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_classes_of_texts_and_what_padding_changes() -> None:
    torch.manual_seed(0)
    for base in (BASE, BERT):
        model = TextClassifier(base=base, num_classes=3).eval()
        given = batch()
        logits = Outputs(model, given).text_logits
        assert logits.shape == (2, 3)
        text = given.stream("text").map(lambda value: value[1:, :6] if value.ndim > 1 else value[1:])
        alone = Outputs(model, Batch({"text": text}, torch.zeros(1, dtype=torch.long))).text_logits
        torch.testing.assert_close(alone[0], logits[1])
        assert set(model.streams()) == {"text", "label"}


def test_a_base_that_cannot_is_refused() -> None:
    with pytest.raises(ValueError, match="base: Bert lacks the capability PredictsNext"):
        TextWriter(base=BERT)
    clip = {
        "use": "clip:Clip",
        "vocab_size": 40,
        "end": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_width": 16,
    }
    clip |= {"vision_layers": 1, "vision_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2}
    with pytest.raises(ValueError, match="base: Clip lacks the capability FillsWords"):
        TextClassifier(base={**clip, "max_text_length": 8, "embed_dim": 8}, num_classes=2)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        TextClassifier(base=BASE, num_classes=0)


def test_weights_of_a_pretrained_base_fit() -> None:
    torch.manual_seed(1)
    trained, head = Unimo(**SIZES), TextClassifier(base=BASE, num_classes=2)
    head.base.load_state_dict(trained.state_dict())
    state = head.adapted({f"base.{name}": value for name, value in trained.state_dict().items()})
    assert set(state) == {name for name in head.state_dict() if name.startswith("base.")}
