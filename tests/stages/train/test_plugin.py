"""A model, an objective and a corruptor in a file of one's own: trained, and used by the stages that it can serve."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import GatherOutput, run_gather, run_map
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.evaluate.retrieval import Retrieval
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter.itm import ItmFilter
from vlpipe.stages.train.train import Train

OWN = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.objective import Objective, Term


class TinyClip(Model):
    """A linear map of the pixels, and the mean of word vectors."""

    STREAMS = {"image": "image:Image", "text": "text:Text"}

    def __init__(self, *, vocab_size: int, embed_dim: int = 8, image_size: int = 16) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.pixels = nn.Linear(3 * image_size**2, embed_dim)
        self.words = nn.Embedding(vocab_size, embed_dim)
        self.temp = nn.Parameter(torch.tensor(0.1))

    def streams(self):
        found = super().streams()
        found["image"]["size"] = self.config.image_size
        return found

    def image_feat(self, out):
        return F.normalize(self.pixels(out.stream("image").data.flatten(1)), dim=1)

    def text_feat(self, out):
        text = out.stream("text")
        return F.normalize((self.words(text.data) * text.mask[..., None]).sum(1), dim=1)


class Nce(Objective):
    LOSSES = ("nce",)
    NEEDS = (EmbedsImages, EmbedsTexts)
    SCOPE = "batch"
    FEATURES = ("image_feat", "text_feat")

    def forward(self, out):
        logits = out.image_feat @ out.text_feat.t() / out.model.temp
        each = F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")
        return {"nce": Term(each.sum(), len(each))}


@dataclass(frozen=True, kw_only=True)
class FirstWord:
    """Leaves one word of each text."""

    stream: str = "text"

    def __call__(self, samples, rng, makers):
        for sample in samples:
            sample[self.stream] = {name: value[:2] for name, value in sample[self.stream].items()}
        return samples
'''
Make = Callable[..., Train]


@pytest.fixture
def recipe(recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """recipe(...) of the plugin, with a queue and a teacher of Itc beside its own objective of a view."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own_clip.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    file = recipe_of().tokenizer

    def make(**more: object) -> Train:
        parts: dict[str, object] = {
            "model": {"use": "own_clip:TinyClip", "embed_dim": 12},
            "objectives": [{"use": "own_clip:Nce", "view": "first"}, {"use": "itc:Itc", "queue_size": 20}],
            "views": {"first": ["own_clip:FirstWord"]},
            "teachers": {"ema": {"momentum": 0.9}},
            "streams": {"text": {"max_length": 12}, "image": {"augment": {"flip": True}}},
        }
        return Train(**{"tokenizer": file, "batch_size": 16, "steps": 2, "log_every": 1, **parts, **more})  # type: ignore[arg-type]

    yield make
    sys.modules.pop("own_clip", None)


@pytest.fixture
def trained(recipe: Make, squares: Dataset, tmp_path: Path) -> GatherOutput:
    return run_gather(recipe(accumulate=2), [squares], tmp_path / "trained")


def test_it_trains(recipe: Make, squares: Dataset, trained: GatherOutput, tmp_path: Path) -> None:
    assert recipe().preflight() == []
    assert recipe().schema(squares.schema) == trained.table.schema
    values = {row["name"]: row["value"] for row in trained.table.to_pylist()}
    assert {"nce", "itc", "loss", "temp"} <= set(values)
    assert values["loss"] == pytest.approx(values["nce"] + values["itc"], rel=1e-5)
    config = json.loads((trained.artifacts / "config.json").read_text())
    assert (config["model"], config["embed_dim"]) == ("own_clip:TinyClip", 12)
    again = recipe(model=None, tokenizer=None, init=Weights(path=str(trained.artifacts)))
    more = run_gather(again, [squares], tmp_path / "more")
    assert {path.name for path in more.artifacts.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer",
    }


def test_micro_batches_of_it_are_one_batch(recipe: Make, squares: Dataset, tmp_path: Path) -> None:
    losses = [
        run_gather(recipe(accumulate=k), [squares], tmp_path / f"by{k}").table.to_pylist() for k in (1, 4)
    ]
    for one, other in zip(*losses, strict=True):
        assert one["name"] == other["name"]
        assert one["value"] == pytest.approx(other["value"], rel=1e-5)


def test_stages_that_it_can_serve(squares: Dataset, trained: GatherOutput, tmp_path: Path) -> None:
    weights = Weights(path=str(trained.artifacts))
    (table, *_) = squares.batches(["id", "texts"], ["image"])
    out = run_map(Embed(model=weights), table).table
    vectors = np.array(out["embedding"].to_pylist())
    assert vectors.shape == (len(table), 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    stage = Retrieval(model=weights, source="web", k_test=0, max_text_length=12)
    figures = run_gather(stage, [squares], tmp_path / "retrieval").table.to_pylist()
    assert {row["name"] for row in figures} == {f"itc_{way}@{k}" for way in ("tr", "ir") for k in (1, 5, 10)}
    assert {row["num_rows"] for row in figures} == {48}


def test_stages_that_it_cannot_serve_say_so(squares: Dataset, trained: GatherOutput, tmp_path: Path) -> None:
    weights = Weights(path=str(trained.artifacts))
    (table, *_) = squares.batches(["id", "texts"], ["image"])
    said = f"the model in {weights.path} is a TinyClip, which does not have what this step needs "
    with pytest.raises(VlpipeError) as caught:
        run_map(ItmFilter(model=weights), table)
    assert str(caught.value) == said + "(Judges whether text and image belong together)"
    with pytest.raises(VlpipeError) as caught:
        run_map(Caption(model=weights), table)
    assert str(caught.value) == said + "(Writes texts about images)"
    with pytest.raises(VlpipeError, match="Judges whether text and image belong together"):
        run_gather(Retrieval(model=weights, source="web"), [squares], tmp_path / "retrieval")


def test_an_objective_that_it_cannot_serve_is_said_before_the_run(recipe: Make) -> None:
    (said,) = recipe(objectives=["lm:Lm"]).preflight()
    assert (
        said
        == "objectives: Lm needs a model that has more than TinyClip offers (PredictsNext: Predicts the next word)"
    )
