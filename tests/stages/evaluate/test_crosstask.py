"""CrossTask: its files, ordered assignments worked by hand, and recall."""

from __future__ import annotations

import itertools
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
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common import model as common_model
from vlpipe.stages.evaluate.video.ordered import matched, ordered, read_annotation, read_tasks
from vlpipe.stages.evaluate.video.steps import StepRecall, figures
from vlpipe.stages.features.s3d import features_type

TASKS = (
    "23521\nMake Jam\nhttps://a.test\n2\nadd sugar,stir\n\n7\nFix a Tyre\nhttps://b.test\n1\nremove wheel\n"
)


def test_tasks_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TASKS)
    found = read_tasks(tmp_path / "t.txt")
    assert {name: task.steps for name, task in found.items()} == {
        "23521": ("add sugar", "stir"),
        "7": ("remove wheel",),
    }
    assert found["7"].title == "Fix a Tyre"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TASKS.replace("\n2\n", "\n3\n"), "line 1: wanted five lines"),
        (TASKS[: TASKS.index("remove")], "line 7: wanted five lines"),
        (TASKS + "\n" + TASKS, "task 23521 is there twice"),
    ],
)
def test_other_task_files_are_errors(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(VlpipeError, match=rf"t\.txt, .*{why}"):
        read_tasks(tmp_path / "t.txt")


def test_annotations_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,0.5,3\n2,4,9.25\n1,10,11\n")
    assert read_annotation(tmp_path / "a.csv", 2) == [(0, 0.5, 3), (1, 4, 9.25), (0, 10, 11)]
    for bad in ("3,1,2", "0,1,2", "1,5,2", "1,2", "step,start,end", "1,1,nan"):
        (tmp_path / "a.csv").write_text("1,0,1\n" + bad + "\n")
        with pytest.raises(
            VlpipeError, match=r"a\.csv, line 2: wanted step,start,end with a step from 1 to 2"
        ):
            read_annotation(tmp_path / "a.csv", 2)


def test_an_assignment_by_hand() -> None:
    """Each step alone would take time 2; in order, the best is 0 (3), 2 (5), 3 (1) with a sum of 9."""
    scores = np.array([[3, 0, 0], [1, 1, 0], [4, 5, 3], [0, 0, 1]], float)
    assert ordered(scores).tolist() == [0, 2, 3]


def test_of_equal_assignments_the_earliest_counts() -> None:
    assert ordered(np.zeros((4, 2))).tolist() == [0, 1]
    assert ordered(np.array([[0, 0], [0, 1], [0, 1]], float)).tolist() == [0, 1]


def test_it_is_the_best_of_all_in_order() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        num_steps = int(draw.integers(1, 4))
        scores = draw.normal(size=(int(draw.integers(num_steps, 8)), num_steps))
        best = max(
            itertools.combinations(range(len(scores)), num_steps),
            key=lambda times: sum(scores[t, k] for k, t in enumerate(times)),
        )
        assert ordered(scores).tolist() == list(best)
    with pytest.raises(ValueError, match="3 steps in order need as many times, got 2"):
        ordered(np.zeros((2, 3)))


def test_matches_by_hand() -> None:
    centres = np.arange(6) + 0.5
    spans = [(0, 1.2, 1.8), (2, 3.0, 4.0), (2, 5.5, 5.5)]  # seconds 1; 3; and 5 of the third step
    assert matched(np.array([1, 2, 3]), centres, spans) == (2, 2)  # the second step is not present
    assert matched(np.array([0, 2, 4]), centres, spans) == (0, 2)
    assert matched(np.array([2, 3, 5]), centres, spans) == (1, 2)


def test_recall_is_a_mean_over_tasks() -> None:
    rows = {row["name"]: row["value"] for row in figures({"a": [(1, 2), (2, 2)], "b": [(0, 1)]})}
    assert rows == {"recall/a": 0.75, "recall/b": 0.0, "recall": 0.375}


class Same(Model):
    """A window's vector, and the sum of a text's one-hot words."""

    STREAMS = {"video": "windows:FrameWindows", "text": "narration:Narration"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()

    def clip_feat(self, out: Any) -> Tensor:
        return out.stream("video").data[:, :, 0]

    def narration_feat(self, out: Any) -> Tensor:
        return torch.nn.functional.one_hot(out.stream("text").data, 5)[..., 1:4].sum(3).float()


def test_a_model_finds_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(pipeline(["sugar", "stir", "wheel"], lower=True), ROLES)
    loaded = common_model.Loaded(Same(), tokenizer, torch.device("cpu"))
    monkeypatch.setattr(common_model, "load", lambda *_, **__: loaded)
    (tmp_path / "t.txt").write_text(TASKS)
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth/23521_-a_b.csv").write_text("1,0,1\n2,2,3\n")
    (tmp_path / "truth/7_cc.csv").write_text("1,0,1\n")
    (tmp_path / "truth/23521_short.csv").write_text("1,0,1\n")
    said = {"-a_b": [0, 2, 1], "cc": [0, 2], "short": [1], "none": [0]}  # the word that each second shows
    feats = [
        [{"start_s": t, "end_s": t + 1, "feat": np.eye(3)[word]} for t, word in enumerate(words)]
        for words in said.values()
    ]
    table = pa.table({"id": [*said], "video_id": [*said], "frame_feats": pa.array(feats, features_type(3))})
    stage = StepRecall(
        model=Weights(path="x"),
        tasks=File(path=str(tmp_path / "t.txt")),
        annotations=File(path=str(tmp_path / "truth")),
    )
    got = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out")
    rows = {row["name"]: row["value"] for row in got.table.to_pylist()}
    assert rows == {"recall/23521": 1.0, "recall/7": 0.0, "recall": 0.5}
    assert [(one.id, one.why) for one in got.rejects] == [("short", "too_short"), ("none", "no_annotation")]
