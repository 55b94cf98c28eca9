"""Action probe: the formats of HMDB51 and UCF101, the classifier's optimum, scores over windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.evaluate.video.actions import ActionProbe, fitted
from vlpipe.stages.evaluate.video.splits import Labelled, read_split
from vlpipe.stages.features.s3d import features_type


def test_hmdbs_lists(tmp_path: Path) -> None:
    (tmp_path / "brush_hair_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \nd.avi 0 \n")
    (tmp_path / "wave_test_split1.txt").write_text("e.avi 2\n")
    (tmp_path / "wave_test_split2.txt").write_text("e.avi 1\n")
    assert read_split(tmp_path, 1) == {
        "a b": Labelled("brush_hair", True),
        "c": Labelled("brush_hair", False),
        "e": Labelled("wave", False),
    }
    (tmp_path / "wave_test_split1.txt").write_text("e.avi 2\nf.avi 3\n")
    with pytest.raises(VlpipeError, match=r"wave_test_split1\.txt, line 2: wanted a file name and 0, 1 or 2"):
        read_split(tmp_path, 1)


def test_ucfs_lists(tmp_path: Path) -> None:
    (tmp_path / "trainlist02.txt").write_text("Archery/v_a_g01.avi 1\nBiking/v_b_g01.avi 2\n")
    (tmp_path / "testlist02.txt").write_text("Archery/v_a_g02.avi\n")
    assert read_split(tmp_path, 2) == {
        "v_a_g01": Labelled("Archery", True),
        "v_b_g01": Labelled("Biking", True),
        "v_a_g02": Labelled("Archery", False),
    }
    (tmp_path / "testlist02.txt").write_text("v_a_g02.avi\n")
    with pytest.raises(VlpipeError, match=r"testlist02\.txt, line 1: wanted CLASS/NAME"):
        read_split(tmp_path, 2)
    with pytest.raises(VlpipeError, match=r"has neither \*_test_split1\.txt nor trainlist01\.txt"):
        read_split(tmp_path, 1)


def test_a_table_of_all_splits(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("video_id,label,split1,split2\na.avi,run,train,test\nb,walk,test,\n")
    assert read_split(tmp_path / "s.csv", 2) == {"a": Labelled("run", False)}
    assert read_split(tmp_path / "s.csv", 1)["b"] == Labelled("walk", False)
    with pytest.raises(VlpipeError, match="has no column split3"):
        read_split(tmp_path / "s.csv", 3)
    for table, said in (
        (b"video_id,label,label,split1\na,run,walk,train\n", "has no column label, or several"),
        (
            b"video_id,label,split1\na.avi,run,train\na.mp4,run,test\n",
            "'a' is 'run' for training, and 'run' for the test",
        ),
        (b"video_id,label,split1\na,,train\n", "video 'a' with the label '' is in train; wanted both"),
        (b"video_id,label,split1\n\xe9,run,train\n", "cannot be read as a csv"),
        (
            b'video_id,label,split1\na,"run,train\nb,run,test\n',
            "cannot be read as a csv: unexpected end of data",
        ),
    ):
        (tmp_path / "s.csv").write_bytes(table)
        with pytest.raises(VlpipeError, match=said):
            read_split(tmp_path / "s.csv", 1)


def test_lists_with_a_mark_and_videos_with_two_classes(tmp_path: Path) -> None:
    (tmp_path / "run_test_split1.txt").write_bytes(b"\xef\xbb\xbfa.avi 1\nb.avi 2\n")
    assert set(read_split(tmp_path, 1)) == {"a", "b"}
    (tmp_path / "walk_test_split1.txt").write_text("a.avi 1\n")
    with pytest.raises(VlpipeError, match="video 'a' is 'run' for training, and 'walk' for training"):
        read_split(tmp_path, 1)
    (tmp_path / "walk_test_split1.txt").write_bytes(b"\xe9.avi 1\n")
    with pytest.raises(VlpipeError, match=r"walk_test_split1\.txt is not UTF-8 text"):
        read_split(tmp_path, 1)


def test_the_classifier_is_at_its_optimum() -> None:
    """The gradient of the objective, worked out by hand, is 0; a move in any direction does not improve it."""
    draw = np.random.default_rng(0)
    x, labels, c = draw.normal(size=(40, 3)).astype(np.float32), draw.integers(3, size=40), 5.0
    scores = fitted(x, labels, 3, c, False)
    bias = scores(np.zeros((1, 3), np.float32))
    weights = np.concatenate([scores(np.eye(3, dtype=np.float32)) - bias, bias])
    inputs, signs = np.concatenate([x, np.ones((40, 1))], axis=1), np.where(np.eye(3)[labels] > 0, 1, -1)
    slack = np.maximum(0, 1 - signs * (inputs @ weights))
    gradient = weights - 2 * c * inputs.T @ (signs * slack)
    assert np.abs(gradient).max() < 1e-3


def probe(
    tmp_path: Path, feats: dict[str, Any], **more: Any
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    entries = [
        [{"start_s": t, "end_s": t + 1, "feat": f} for t, f in enumerate(some)] for some in feats.values()
    ]
    table = pa.table(
        {
            "id": [*feats],
            "video": [f"x/{name}.avi" for name in feats],
            "s3d": pa.array(entries, features_type(2)),
        }
    )
    stage = ActionProbe(splits=File(path=str(tmp_path / "s.csv")), **more)
    got = run_gather(stage, [dataset(tmp_path / "in", table)], tmp_path / "out")
    return {r["name"]: r["value"] for r in got.table.to_pylist()}, [(r.id, r.why) for r in got.rejects]


@pytest.mark.parametrize("standardise", [False, True])
def test_a_video_has_the_mean_of_its_windows_scores(tmp_path: Path, standardise: bool) -> None:
    """Two of three windows of the last video look like walking a little, one very much like running."""
    (tmp_path / "s.csv").write_text(
        "video_id,label,split1\na,run,train\nb,walk,train\ne,run,train\nc,walk,test\nd,run,test\nf,swim,test\n"
    )
    feats = {
        "a": [[1, 0]] * 4,
        "b": [[0, 1]] * 4,
        "e": [[1, 0]],
        "c": [[0, 1]],
        "d": [[0.4, 0.6], [0.4, 0.6], [3, 0]],
        "f": [[0, 0]],  # a class that is not in training is never right
        "g": [[0, 0]],
    }
    found, rejects = probe(tmp_path, feats, standardise=standardise)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["prior"] == pytest.approx(1 / 3)
    assert found["se"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert rejects == [("g", "not_in_split")]


def test_a_split_without_test_videos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("video_id,label,split1\na,run,train\nb,walk,train\n")
    with pytest.raises(VlpipeError, match="got 2 for training and 0 for the test"):
        probe(tmp_path, {"a": [[1, 0]], "b": [[0, 1]]})


def test_with_the_labels_of_others_the_prior_is_left(tmp_path: Path) -> None:
    """Two thirds of the videos run; the classifier of true labels tells both, that of other labels says run."""
    names = [f"{part}{k}" for part in ("r", "s") for k in range(30)]
    label = {name: "walk" if int(name[1:]) % 3 == 0 else "run" for name in names}
    lines = [f"{n},{label[n]},{'train' if n[0] == 'r' else 'test'}" for n in names]
    (tmp_path / "s.csv").write_text("video_id,label,split1\n" + "\n".join(lines) + "\n")
    feats = {n: [[1, 0] if label[n] == "run" else [0, 1]] for n in names}
    own, _ = probe(tmp_path, feats)
    others, _ = probe(tmp_path, feats, shuffled=True)
    assert own["accuracy"] == 1
    assert others["accuracy"] <= others["prior"] == pytest.approx(2 / 3)
