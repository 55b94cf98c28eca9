"""Lazy outputs: each value once, views over the batch, rows paired anew, teachers without gradient."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs


class Toy(nn.Module):
    """image_tokens = 10 x image weight; joint = image_tokens + text, of the images before pairing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.asked: Counter[str] = Counter()

    def image_tokens(self, out: Outputs) -> Tensor:
        self.asked["image_tokens"] += 1
        return self.weight * out.stream("image").data

    def text_feat(self, out: Outputs) -> Tensor:
        self.asked["text_feat"] += 1
        return out.stream("text").data * 1.0

    def joint(self, out: Outputs) -> Tensor:
        tokens, rows = out.unpaired("image_tokens", "image")
        return (tokens if rows is None else tokens[rows]) + out.stream("text").data


@pytest.fixture
def batch() -> Batch:
    streams = {"image": Stream(torch.tensor([1.0, 2.0, 3.0])), "text": Stream(torch.tensor([0.1, 0.2, 0.3]))}
    masked = {"text": Stream(torch.tensor([0.7, 0.8, 0.9]))}
    return Batch(streams=streams, same=torch.arange(3), views={"masked": masked})


def test_a_value_is_computed_once_and_only_if_asked_for(batch: Batch) -> None:
    toy = Toy()
    out = Outputs(toy, batch)
    assert out.joint.tolist() == pytest.approx([10.1, 20.2, 30.3])
    assert out.image_tokens is out.image_tokens
    assert toy.asked == {"image_tokens": 1}
    assert len(out) == 3


def test_a_view_replaces_only_its_streams(batch: Batch) -> None:
    toy = Toy()
    out = Outputs(toy, batch)
    assert out.view("") is out
    assert out.view("masked") is out.view("masked")
    assert out.view("masked").stream("text").data.tolist() == pytest.approx([0.7, 0.8, 0.9])
    assert out.view("masked").stream("image") is batch.streams["image"]
    assert out.view("masked").joint.tolist() == pytest.approx([10.7, 20.8, 30.9])
    assert out.joint.tolist() == pytest.approx([10.1, 20.2, 30.3])


def test_paired_rows_come_from_where_they_are_told(batch: Batch) -> None:
    toy = Toy()
    out = Outputs(toy, batch)
    pairs = out.paired({"text": torch.tensor([0, 1, 2, 0]), "image": torch.tensor([0, 1, 2, 2])})
    assert pairs.joint.tolist() == pytest.approx([10.1, 20.2, 30.3, 30.1])
    assert pairs.text_feat.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert toy.asked["image_tokens"] == 1  # of 3 pictures, not of 4 pairs
    assert out.image_tokens.shape == (3,)
    assert toy.asked["image_tokens"] == 1  # and the unpaired outputs have it too


def test_a_model_that_never_asks_for_unpaired_values_gets_paired_streams(batch: Batch) -> None:
    pairs = Outputs(Toy(), batch).paired({"text": torch.tensor([0]), "image": torch.tensor([2])})
    assert pairs.image_tokens.tolist() == [30.0]


def test_paired_rows_may_be_of_other_streams_and_given_encodings(batch: Batch) -> None:
    toy = Toy()
    index = torch.tensor([3, 0])
    pairs = Outputs(toy, batch).paired(
        {"text": index, "image": index},
        streams={"text": Stream(torch.tensor([0.1, 0.2, 0.3, 0.4]))},
        given={"image_tokens": torch.tensor([1.0, 2.0, 3.0, 4.0])},
    )
    assert pairs.joint.tolist() == pytest.approx([4.4, 1.1])
    assert not toy.asked


class Encoding(Toy):
    ENCODINGS: ClassVar[dict[str, tuple[str, ...]]] = {"image": ("image_tokens",), "text": ("text_feat",)}


def test_a_view_shares_the_encodings_of_streams_that_it_does_not_change(batch: Batch) -> None:
    """The image's, of the model and of a teacher; the text is encoded anew."""
    toy, taught = Encoding(), Encoding()
    out = Outputs(toy, batch, {"ema": taught})
    view = out.view("masked")
    assert view.image_tokens is out.image_tokens
    assert view.teacher("ema").image_tokens is out.teacher("ema").image_tokens
    assert view.text_feat.tolist() == pytest.approx([0.7, 0.8, 0.9])
    assert out.text_feat.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert view.paired(
        {"text": torch.tensor([2]), "image": torch.tensor([0])}
    ).joint.tolist() == pytest.approx([10.9])
    assert toy.asked == {"image_tokens": 1, "text_feat": 2}
    assert taught.asked == {"image_tokens": 1}


def test_a_stream_that_pairs_replace_is_encoded_for_them(batch: Batch) -> None:
    """The encodings of this batch's rows are not those of the rows that are given."""
    more = Stream(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    index = torch.tensor([3, 1])
    pairs = Outputs(Encoding(), batch).paired({"text": index, "image": index % 3}, streams={"text": more})
    value, rows = pairs.unpaired("text_feat", "text")
    assert rows is None
    assert value.tolist() == pytest.approx([0.4, 0.2])
    assert pairs.unpaired("image_tokens", "image")[1].tolist() == [0, 1]


def test_a_teacher_gives_no_gradient(batch: Batch) -> None:
    student, teacher = Toy(), Toy()
    out = Outputs(student, batch, {"ema": teacher})
    assert out.image_tokens.requires_grad
    assert not out.teacher("ema").image_tokens.requires_grad
    assert out.teacher("ema") is out.teacher("ema")
    assert out.feature("ema.image_tokens") is out.teacher("ema").image_tokens
    (out.image_tokens * out.teacher("ema").image_tokens).sum().backward()
    assert teacher.weight.grad is None
    assert student.weight.grad is not None


def test_a_view_has_teachers_that_see_the_view(batch: Batch) -> None:
    seen = Outputs(Toy(), batch, {"ema": Toy()}).view("masked").teacher("ema").text_feat
    assert seen.tolist() == pytest.approx([0.7, 0.8, 0.9])


def test_without_grad_nothing_has_one(batch: Batch) -> None:
    out = Outputs(Toy(), batch, grad=False)
    assert not out.image_tokens.requires_grad
    assert not out.view("masked").joint.requires_grad
    assert not out.paired({"text": torch.tensor([0]), "image": torch.tensor([0])}).joint.requires_grad


def test_of_features_computes_nothing(batch: Batch) -> None:
    toy, feature = Toy(), torch.ones(3, requires_grad=True)
    out = Outputs.of_features(toy, batch, {"image_tokens": feature, "ema.text_feat": torch.zeros(3)})
    assert out.image_tokens is feature
    assert out.teacher("ema").text_feat.tolist() == [0.0, 0.0, 0.0]
    assert out.model is toy
    assert not toy.asked


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda out: out.stream("sound"), "this batch has no stream 'sound'; its streams: image, text"),
        (lambda out: out.view("noisy"), "this batch has no view 'noisy'; its views: masked"),
        (lambda out: out.teacher("clip"), "there is no teacher 'clip'; the recipe has: ema"),
    ],
)
def test_what_is_not_there_is_named(batch: Batch, ask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(Outputs(Toy(), batch, {"ema": Toy()}))
    with pytest.raises(AttributeError, match="Toy has no output 'match'"):
        _ = Outputs(Toy(), batch).match
