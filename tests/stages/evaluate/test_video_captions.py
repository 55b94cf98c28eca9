"""Captions of clips: what is written is scored with its references, and with those of another clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.capabilities import TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.caption_scores import caption_scores
from vlpipe.stages.evaluate.video.captions import VideoCaptions
from vlpipe.stages.features.s3d import features_type

WORDS = ["a", "red", "blue", "ring", "box", "end", "start"]
pytest.importorskip("pycocoevalcap")


class Says(Model):
    """Writes the words whose numbers a clip's first window has, then the end."""

    STREAMS = {"video": "windows:FrameWindows", "caption": "text:Text"}  # noqa: RUF012

    def __init__(self, *, end: int = 0, first: int = 0, num: int = 0) -> None:
        super().__init__()

    def clip_context(self, out: Any) -> Tensor:
        feats: Tensor = out.stream("video").data[:, 0, 0]
        return feats

    @property
    def text_rules(self) -> TextRules:
        return TextRules(self.config.first, self.config.end, [], 10)

    def decoder_hidden(self, out: Any) -> Tensor:
        raise AssertionError("nothing is learned here")

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Cache:
        return Cache(images.repeat_interleave(repeats, 0))

    def step_text(self, ids: Tensor, cache: Cache) -> Tensor:
        at = cache.at
        cache.at += ids.shape[1]
        places = torch.arange(at, at + ids.shape[1])
        ends = torch.full((len(ids),), float(self.config.end))
        return torch.stack([cache.words[:, k] if k < 4 else ends for k in places], dim=1)[..., None]

    def predict(self, hidden: Tensor) -> Tensor:
        return 20.0 * torch.nn.functional.one_hot(hidden[..., 0].long(), self.config.num)


class Cache:
    def __init__(self, words: Tensor) -> None:
        self.words, self.at = words, 0

    def select(self, rows: Tensor) -> None:
        self.words = self.words[rows]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_captions_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_beams: int) -> None:
    tokenizer = Tokenizer(pipeline(WORDS, lower=True), ROLES)
    ids = {word: tokenizer.ids(word)[0] for word in WORDS}
    model = Says(end=ids["end"], first=ids["start"], num=max(ids.values()) + 1)
    loaded = common_model.Loaded(model, tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)
    said = [["a", "red", "ring"], ["a", "blue", "box"], ["a", "blue", "ring"], ["a", "red", "ring"]]
    feats = [[{"start_s": 0, "end_s": 1, "feat": [ids[w] for w in [*one, "end"]]}] for one in said]
    references = [["a red ring", "one red ring"], ["a blue box"], ["a red ring"], ["a red box", "red ring"]]
    table = pa.table(
        {
            "id": list("wxyz"),
            "parent": ["v"] * 4,
            "texts": pa.array([[text(t, "human") for t in some] for some in references], TEXTS),
            "frame_feats": pa.array(feats, features_type(4)),
        }
    )
    stage = VideoCaptions(model=Weights(path="x"), num_beams=num_beams, batch_size=3, max_length=6)
    rows = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out").table.to_pylist()
    found = {row["name"]: row["value"] for row in rows}
    captions = [" ".join(one) for one in said]
    for prefix, shown in (("", captions), ("shuffled/", captions[2:] + captions[:2])):
        scores, _ = caption_scores(shown, references)
        assert {name: found[prefix + name] for name in scores} == pytest.approx(scores)
    assert found["cider"] > found["shuffled/cider"]
    assert found["different"] == 0.75
    (written,) = tmp_path.rglob("captions.json")
    assert [one["caption"] for one in json.loads(written.read_text())["captions"]] == captions
    assert np.isfinite([row["value"] for row in rows]).all()


def test_lengths_are_checked() -> None:
    stage = VideoCaptions(model=Weights(path="x"), min_length=5, max_length=3)
    assert stage.preflight() == ["min_length must be at most max_length, got 5 and 3"]
