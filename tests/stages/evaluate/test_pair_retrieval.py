"""Retrieval by scores of pairs against ranks worked by hand: ties, several texts per clip, candidates that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from vlpipe.models.interface.model import Model
from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common import model as common_model
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.video.pair_retrieval import PairRetrieval, ranks_of
from vlpipe.stages.features.s3d import features_type


class Read(Model):
    """The score of a text and a clip is the clip's feature at the text's word; untrained, 0."""

    STREAMS = {"video": "windows:FrameWindows", "text": "narration:Narration"}  # noqa: RUF012

    def __init__(self, *, works: bool = False) -> None:
        super().__init__()
        self.works = works
        self.config.works = False  # of the untrained one

    def pair_score(self, out: Any) -> Tensor:
        feats, words = out.stream("video").data[:, 0, 0], out.stream("text").data[:, 0, 0, 0]
        return feats.gather(1, (words - 1)[:, None])[:, 0] * self.works


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    tokenizer = Tokenizer(pipeline(["a", "b", "c", "d"], lower=True), ROLES)
    first = tokenizer.ids("a")[0]
    loaded = common_model.Loaded(Read(works=True), tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)

    def of(clips: list[tuple[list[str], list[float]]], **more: Any) -> dict[str, float]:
        feats = [[{"start_s": 0, "end_s": 1, "feat": [0] * (first - 1) + f}] for _, f in clips]
        dim = first - 1 + len(clips[0][1])
        table = pa.table(
            {
                "id": [str(k) for k in range(len(clips))],
                "parent": ["v"] * len(clips),
                "texts": pa.array([[text(t, "human") for t in several] for several, _ in clips], TEXTS),
                "frame_feats": pa.array(feats, features_type(dim)),
            }
        )
        stage = PairRetrieval(model=Weights(path="x"), batch_size=2, **more)
        rows = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out").table.to_pylist()
        return {row["name"]: row["value"] for row in rows}

    return of


def test_ranks_by_hand(run: Any) -> None:
    """a: 3 2 1, found; b: 0 2 5, the second of its clip; c: 1 1 1, a tie with both others."""
    found = run([(["a"], [3, 0, 1, 0]), (["b", "a"], [2, 2, 1, 0]), (["c"], [1, 5, 1, 0])])
    # "a" of the second clip scores 3, 2, 1: its own is the second
    assert found["r@1"] == 0.25
    assert found["medr"] == 2  # 1, 2, 2, 3
    assert found["untrained/medr"] == 3
    assert found["untrained/r@1"] == 0
    assert found["chance/r@1"] == pytest.approx(1 / 3)


def test_candidates_are_others(run: Any) -> None:
    """Each clip is the best of its own word; with two candidates the other one is never the clip itself."""
    clips = [([w], [float(w == other) for other in "abcd"]) for w in "abcd"]
    found = run(clips, candidates=2)
    assert found["r@1"] == 1
    assert found["chance/r@1"] == 0.5
    stage = PairRetrieval(model=Weights(path="x"), candidates=3)
    shown = stage._shown(np.array([0, 3, 3, 1] * 50), 5)
    assert (shown[:, 0] == [0, 3, 3, 1] * 50).all()
    assert all(len(set(row)) == 3 for row in shown.tolist())
    assert np.bincount(shown[shown[:, 0] == 3][:, 1:].ravel(), minlength=5)[[0, 1, 2, 4]].min() > 30  # of 200


def test_ties_and_nan_come_first() -> None:
    scores = np.array([[1, 0, 0], [1, 1, 2], [np.nan, 0, 0], [1, np.nan, 0]], np.float32)
    assert ranks_of(scores).tolist() == [1, 3, 3, 2]


def test_one_candidate_is_a_problem() -> None:
    assert PairRetrieval(model=Weights(path="x"), candidates=1).preflight() == [
        "candidates: wanted 0, or at least 2"
    ]
