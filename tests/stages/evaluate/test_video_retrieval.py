"""Text-video retrieval against ranks worked by hand: ties, several texts per clip, several windows, clips of one video."""

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
from vlpipe.stages.evaluate.video.ranks import figures, ranks
from vlpipe.stages.evaluate.video.retrieval import VideoRetrieval, in_errors
from vlpipe.stages.features.s3d import features_type


def ranked(scores: list[list[float]], right: list[int], groups: Any = None) -> list[int]:
    """Scores (Q, C) as dot products of queries (Q, C) and unit candidates."""
    queries = np.array(scores, np.float32)
    return ranks(queries, np.eye(queries.shape[1], dtype=np.float32), np.array(right), groups).tolist()


def test_ranks_by_hand() -> None:
    assert ranked([[3, 2, 1], [3, 2, 1], [3, 2, 1]], [0, 1, 2]) == [1, 2, 3]


def test_ties_count_against_the_model() -> None:
    assert ranked([[1, 1, 1], [2, 2, 1], [2, 1, 1]], [0, 1, 0]) == [3, 2, 1]
    assert ranked([[0, 0, 0]], [2]) == [3]  # a model that says nothing finds nothing


def test_a_score_that_is_no_number_is_a_miss() -> None:
    assert ranked([[float("nan"), 1, 2]], [0]) == [3]
    assert ranks(np.array([[np.nan]], np.float32), np.ones((4, 1), np.float32), np.array([1])).tolist() == [4]


def test_only_candidates_of_the_group_compete() -> None:
    groups = np.array([0, 1]), np.array([0, 1, 1])
    assert ranked([[1, 5, 6], [9, 2, 3]], [0, 1], groups) == [1, 2]


def test_figures_by_hand() -> None:
    found = {row["name"]: row["value"] for row in figures("x/", np.array([1, 2, 5, 6, 10, 11]))}
    assert found == {"x/r@1": 1 / 6, "x/r@5": 0.5, "x/r@10": 5 / 6, "x/medr": 5.5}


def test_gain_adds_up_the_texts_of_a_clip() -> None:
    differences, of = np.array([1.0, 1, 0, -1, 1]), np.array([0, 0, 1, 2, 3])
    sums = np.array([2.0, 0, -1, 1])
    assert in_errors(differences, of) == pytest.approx(sums.sum() / (sums.std(ddof=1) * 2))
    assert in_errors(np.zeros(3), np.arange(3)) == 0


class Same(Model):
    """A clip's embedding is the greatest of its windows, a text's the sum of its words' one-hot vectors; untrained, zero."""

    STREAMS = {"video": "windows:FrameWindows", "text": "narration:Narration"}  # noqa: RUF012

    def __init__(self, *, works: bool = False) -> None:
        super().__init__()
        self.works = works
        self.config.works = False  # of the untrained one

    def clip_feat(self, out: Any) -> Tensor:
        return out.stream("video").data.amax(2) * self.works

    def narration_feat(self, out: Any) -> Tensor:
        ids = out.stream("text").data
        return torch.nn.functional.one_hot(ids, 6)[..., 1:5].sum(3).float()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    tokenizer = Tokenizer(pipeline(["a", "b", "c", "d"], lower=True), ROLES)
    loaded = common_model.Loaded(Same(works=True), tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)

    def of(clips: list[tuple[str, list[str], list[list[float]]]], **more: Any) -> dict[str, float]:
        kind = features_type(4)
        feats = [[{"start_s": 0, "end_s": 1, "feat": f} for f in some] for _, _, some in clips]
        table = pa.table(
            {
                "id": [str(k) for k in range(len(clips))],
                "parent": [parent for parent, _, _ in clips],
                "texts": pa.array([[text(t, "human") for t in several] for _, several, _ in clips], TEXTS),
                "frame_feats": pa.array(feats, kind),
            }
        )
        stage = VideoRetrieval(model=Weights(path="x"), batch_size=2, **more)
        rows = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out").table.to_pylist()
        return {row["name"]: row["value"] for row in rows}

    return of


def test_texts_find_their_clips(run: Any) -> None:
    found = run(
        [
            ("v", ["a", "b"], [[1, 0, 0, 0]]),  # "a" is found; "b" is of the next clip, then of both others
            ("v", ["b"], [[0, 2, 0, 0]]),
            ("w", ["c"], [[0, 0, 1, 0]]),
        ]
    )
    assert found["r@1"] == 0.75
    assert found["r@5"] == 1
    assert found["medr"] == 1
    assert found["untrained/medr"] == 3  # all scores are 0
    assert found["within/r@1"] == pytest.approx(2 / 3)  # "c" is of the only clip of its video
    assert found["within/untrained/r@1"] == 0


def test_windows_are_read_together_or_averaged(run: Any) -> None:
    clips = [("v", ["a"], [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), ("w", ["d"], [[1, 0, 0, 1]])]
    assert run(clips)["r@1"] == 1  # the greatest window: 2 against 1
    assert run(clips, average=True)["r@1"] == 0.5  # the mean: 2 / 3 against 1
