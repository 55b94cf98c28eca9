"""Heads over every system that sees texts and images together: what they read, what a blind one sees, how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.small_system import ROWS, SmallSystem, small_systems
from vlpipe.models import folder
from vlpipe.models.downstream.based import tokens_of
from vlpipe.models.downstream.chooser import JointChooser
from vlpipe.models.downstream.classifier import JointClassifier
from vlpipe.models.downstream.joint import SECOND, JointModel, pooled, unseen
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import Answers, Fuses, Matches, missing
from vlpipe.models.interface.joint_capabilities import PoolsJointly
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.blip.config import TOKENS
from vlpipe.models.tokenizer import Tokenizer


def sees_both(one: SmallSystem) -> bool:
    model = one.make()
    joint = not missing(model, [PoolsJointly]) or not missing(model, [Fuses])
    return joint and "text" in one.streams and len(JointModel.seen.fget(Shown(model))) == 1  # type: ignore[attr-defined]


class Shown:
    def __init__(self, base: Any) -> None:
        self.base = base


def has_head(one: SmallSystem) -> bool:
    model = one.make()
    return not missing(model, [Matches]) and (hasattr(model, "match_head") or hasattr(model, "itm_head"))


SYSTEMS = {name: one for name, one in small_systems().items() if sees_both(one)}


def spec_of(one: SmallSystem) -> dict[str, Any]:
    model: Any = one.make()
    config = dict(vars(model.config))
    tokens = {name: config.pop(name) for name in (*TOKENS, "vocab_size") if name in config}
    return {"base": {"use": folder.use_of(type(model)), **config}, "tokens": tokens}


def batch_of(one: SmallSystem) -> Batch:
    """The rows with targets for losses left out, and the same images in another order as second ones."""
    full = one.batch(0)
    streams = {name: Stream(s.data, s.mask, s.extra) for name, s in full.streams.items() if name != "answer"}
    again = {
        SECOND + name: s.rows(torch.tensor([1, 0, 3, 2])) for name, s in streams.items() if name != "text"
    }
    return Batch({**streams, **again}, full.same)


def test_the_systems_that_must_be_among_them() -> None:
    assert {"albef", "blip", "lxmert", "pixel_bert", "uniter", "vilt", "vlmo"} <= set(SYSTEMS)


@pytest.mark.parametrize("name", [name for name, one in SYSTEMS.items() if has_head(one)])
def test_the_joint_vector_is_what_the_matching_head_reads(name: str) -> None:
    torch.manual_seed(0)
    model: Any = SYSTEMS[name].make().eval()
    out = Outputs(model, batch_of(SYSTEMS[name]))
    head = getattr(model, "match_head", None) or model.itm_head
    torch.testing.assert_close(head(pooled(model, out)), out.match)


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("name", SYSTEMS)
def test_answers_of_each_system(name: str, num_images: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = spec_of(SYSTEMS[name])
    model = JointClassifier(**spec, num_answers=7, num_images=num_images).eval()
    assert not missing(model, [Answers])
    batch = batch_of(SYSTEMS[name])
    logits = Outputs(model, batch).answer
    assert logits.shape == (ROWS, 7)
    folder.save(model, tmp_path)
    torch.testing.assert_close(Outputs(folder.load(tmp_path).eval(), batch).answer, logits, rtol=0, atol=0)
    expected = {*model.base.streams(), "answer"} | (
        {SECOND + s for s in model.seen} if num_images == 2 else set()
    )
    assert set(model.streams()) == expected
    for changed in [s for s in batch.streams if s != "text"][:num_images]:
        other = {**batch.streams, changed: batch.streams[changed].rows(torch.tensor([2, 3, 1, 0]))}
        assert not torch.allclose(Outputs(model, Batch(other, batch.same)).answer, logits)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_blind_one_answers_alike_whatever_the_image(name: str) -> None:
    torch.manual_seed(0)
    model = JointClassifier(**spec_of(SYSTEMS[name]), num_answers=7, blind=True).eval()
    batch = batch_of(SYSTEMS[name])
    (image,) = model.seen
    stream = batch.streams[image]
    fewer = stream.map(
        lambda v: v[:, :2] if stream.data.ndim < 4 and v.ndim < 4 else v + v.is_floating_point()
    )
    other = Batch({**batch.streams, image: fewer}, batch.same)
    torch.testing.assert_close(Outputs(model, other).answer, Outputs(model, batch).answer, rtol=0, atol=0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_several_texts_of_an_image_are_as_each_alone(name: str) -> None:
    torch.manual_seed(0)
    model = JointModel(**spec_of(SYSTEMS[name])).eval()
    batch = batch_of(SYSTEMS[name])
    images = {s: batch.streams[s].rows(slice(0, 2)) for s in model.seen}
    text = batch.streams["text"]
    together = model.joint({"text": text, **images}, batch.same[:2], texts_per_image=2)
    each = {s: stream.rows(torch.tensor([0, 0, 1, 1])) for s, stream in images.items()}
    torch.testing.assert_close(together, model.joint({"text": text, **each}, batch.same))


@pytest.mark.parametrize("name", SYSTEMS)
def test_choices_of_each_system(name: str, tmp_path: Path) -> None:
    """Scores do not depend on padding, and a choice that is not there has none."""
    torch.manual_seed(0)
    model = JointChooser(**spec_of(SYSTEMS[name])).eval()
    batch = batch_of(SYSTEMS[name])
    text = batch.streams["text"].data
    ids, mask = text[:, None].repeat(1, 3, 1), torch.ones(ROWS, 3, text.shape[1], dtype=torch.bool)
    ids[:, 1, 2:4], mask[0, 2] = 7, False

    def scores(length: int) -> torch.Tensor:
        shown = {s: v for s, v in batch.streams.items() if s != "text"}
        kept = mask & (torch.arange(mask.shape[-1]) < 8)
        choices = Stream(
            ids[..., :length], kept[..., :length], {"segment": torch.zeros_like(ids[..., :length])}
        )
        out: torch.Tensor = Outputs(model, Batch({**shown, "choices": choices}, batch.same)).choice_scores
        return out

    found = scores(8)
    assert found.shape == (ROWS, 3)
    assert found.isneginf().tolist() == [[False, False, True], *[[False] * 3] * (ROWS - 1)]
    torch.testing.assert_close(scores(10), found)
    torch.testing.assert_close(found[1:, 0], found[1:, 2])  # the same text
    assert not torch.equal(found[:, 0], found[:, 1])
    folder.save(model, tmp_path)
    assert set(folder.load(tmp_path).streams()) == {*model.seen, "choices"}


def test_what_is_not_seen_has_one_region_and_no_content() -> None:
    regions = Stream(
        torch.ones(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(), {"box": torch.ones(2, 3, 4)}
    )
    found = unseen(regions)
    assert found.mask is not None
    assert found.data.shape == found.extra["box"].shape == (2, 1, 4)
    assert not found.data.any()
    assert not found.extra["box"].any()
    assert found.mask.all()
    assert unseen(Stream(torch.ones(2, 3, 8, 8))).data.shape == (2, 3, 8, 8)


def test_sizes_come_from_the_tokenizer() -> None:
    tokenizer = Tokenizer.train(["a red circle"] * 3, 60)
    assert tokens_of(tokenizer)["vocab_size"] == tokenizer.vocab_size
    base = {"use": "vilt:Vilt", "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
    model = JointClassifier.from_spec({"base": base, "num_answers": 3}, tokenizer)
    assert model.base.words.words.num_embeddings == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({}, "JointClassifier needs `base`"),
        ({"base": {"use": "vit:Vit"}}, "Vit has neither `pooled` nor `fused`"),
    ],
)
def test_what_is_no_base(spec: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        JointClassifier.from_spec({**spec, "num_answers": 3})
