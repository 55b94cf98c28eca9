"""Clips of a video in one row, and samples of several of them: the same for both streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.milnce import MilNce
from vlpipe.stages.features.howto100m_2d3d import clip_feature
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.loading.batches.make_batch import BatchMaker, Samples
from vlpipe.stages.loading.makers.videos.narration import Candidates, Narration, VideoNarration
from vlpipe.stages.loading.makers.videos.windows import (
    FrameWindows,
    Video2d3d,
    VideoFrameWindows,
    Windows,
    within,
)
from vlpipe.stages.loading.order import Sample
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.narrated.list_clips import CLIPS, ListClips
from vlpipe.stages.video.rows import VIDEOS

TOKENIZER = Tokenizer(pipeline(["cut", "the", "onion", "salt"], lower=True), ROLES)


@pytest.fixture
def videos() -> Callable[..., pa.Table]:
    def make(*cues: list[tuple[float, float, str]]) -> pa.Table:
        more = {"words": None, "source": "auto", "lang": "en"}
        file = {"url": "a", "video": "a.mp4", "num_bytes": 1, "sha256": "0", "duration_s": 20.0}
        rows = [
            {
                "id": f"v{k}",
                **file,
                "video_id": str(k),
                "cues": [{"start_s": s, "end_s": e, "text": t, **more} for s, e, t in some],
            }
            for k, some in enumerate(cues)
        ]
        return pa.Table.from_pylist(rows, VIDEOS)

    return make


def test_a_rule_lists_the_clips_of_each_video(videos: Any) -> None:
    table = videos([(0, 3, "cut"), (3, 6, "the onion")], [], [(1, 2, "salt")])
    rule = {"use": "clips.milnce:MilNce", "min_time_s": 1, "num_candidates": 2}
    out = run_map(ListClips(rule=rule), table)
    assert out.table["id"].to_pylist() == ["v0", "v2"]
    assert [(one.id, one.why) for one in out.rejects] == [("v1", "no_cues")]
    first, last = out.table["clips"].to_pylist()
    assert first[0] == {"start_s": 0, "end_s": 3, "text": "cut", "candidates": ["cut", "the onion"]}
    assert [one["text"] for one in first] == ["cut", "the onion"]
    assert last[0]["candidates"] == ["salt"]
    assert out.table["cues"].to_pylist()[0] == table["cues"].to_pylist()[0]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"use": "clips.spans:SpanClips"}, "is not a pairing rule"),
        ({"use": "clips.milnce:MilNce", "min_time": 1}, "min_time"),
        ({}, "use must be 'module:Class'"),
    ],
)
def test_a_bad_rule_is_an_error(videos: Any, rule: dict[str, Any], why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        ListClips(rule=rule).schema(videos([]).schema)
    assert why in ListClips(rule=rule).preflight()[0]


def windows(*feats: list[float], first_s: float = 0.0) -> pa.ListScalar:
    entries = [{"start_s": first_s + k, "end_s": first_s + k + 1, "feat": f} for k, f in enumerate(feats)]
    return pa.array([entries], features_type(2))[0]


def video_row() -> Row:
    clips = [
        {"start_s": k, "end_s": k + 1, "text": word, "candidates": [word, "salt"]}
        for k, word in enumerate(["cut", "the", "onion"])
    ]
    return Row(
        "v", 7, [], {"clips": pa.array([clips], CLIPS)[0], "frame_feats": windows([0, 0], [1, 0], [2, 0])}
    )


def test_frames_and_words_of_a_sample_are_of_the_same_clips() -> None:
    makers = {
        "video": VideoFrameWindows(pairs=5),
        "text": VideoNarration(pairs=5, tokenizer=TOKENIZER, max_words=3, num_candidates=2),
    }
    found = [(Sample(0, k, 0, k), video_row(), "") for k in range(8)]
    batch = BatchMaker(0, makers)(Samples(found, None))  # type: ignore[arg-type]
    video, text = batch.stream("video"), batch.stream("text")
    assert video.data.shape == (8, 5, 1, 2)
    assert text.data.shape == (8, 5, 2, 3)
    assert video.data[..., 0, 0].unique().tolist() == [0, 1, 2]
    assert (text.data[:, :, 0, 0] == video.data[..., 0, 0] + 1).all()  # word k + 1 is said during window k
    assert (text.data[:, :, 1, 0] == 4).all()
    assert text.mask is not None
    assert text.mask.sum(-1).unique().tolist() == [1]


def test_a_clip_without_a_window_has_the_nearest() -> None:
    centres = np.array([0.5, 1.5, 9.5])
    assert within(centres, {"start_s": 0.0, "end_s": 2.0}).tolist() == [0, 1]
    assert within(centres, {"start_s": 1.5, "end_s": 1.6}).tolist() == [1]
    assert within(centres, {"start_s": 4.0, "end_s": 5.0}).tolist() == [1]
    assert within(centres, {"start_s": 8.0, "end_s": 9.5}).tolist() == [2]


def test_windows_of_clip_rows_are_padded_and_cut() -> None:
    short, long = (
        Row("a", k, [], {"frame_feats": windows(*feats)})
        for k, feats in enumerate([[[1.0, 2.0]], [[float(t), 0.0] for t in range(5)]])
    )
    maker, rng = FrameWindows(max_windows=3), np.random.default_rng(0)
    stream = maker.collate([maker(short, "", rng), maker(long, "", rng)])
    assert stream.data.shape == (2, 1, 3, 2)
    assert stream.mask is not None
    assert stream.mask[:, 0].tolist() == [[True, False, False], [True, True, True]]
    assert np.diff(stream.data[1, 0, :, 0]).tolist() == [1, 1]
    vector = Row("a", 0, [], {"s3d": pa.array([[1.0, 2.0]], pa.list_(pa.float16(), 2))[0]})
    assert Windows()(vector, "", rng)["data"].tolist() == [[[1, 2]]]
    with pytest.raises(VlpipeError, match="row b has no frame_feats"):
        maker(Row("b", 0, [], {"frame_feats": windows()}), "", rng)
    with pytest.raises(ValueError, match="max_windows must be at least 1"):
        FrameWindows(max_windows=0)


def test_candidates_are_bags_and_missing_ones_are_masked() -> None:
    candidates = pa.array([[{"text": "cut the leek"}, {"text": "salt"}]])[0]
    row, none = (
        Row("a", 0, [], {"candidates": candidates}),
        Row("a", 0, [], {"candidates": pa.array([[]])[0]}),
    )
    maker, rng = Candidates(tokenizer=TOKENIZER, num_candidates=3, max_words=2), np.random.default_rng(0)
    stream = maker.collate([maker(row, "cut", rng), maker(none, "onion", rng)])
    assert stream.data.tolist() == [[[[1, 2], [4, 0], [0, 0]]], [[[3, 0], [0, 0], [0, 0]]]]
    assert stream.mask is not None
    assert stream.mask.any(-1).tolist() == [[[True, True, False]], [[True, False, False]]]
    one = Narration(tokenizer=TOKENIZER, max_words=2)(None, "Salt, the leek", rng)
    assert one["data"].tolist() == [[[4, 2]]]


def test_a_video_without_clips_is_an_error() -> None:
    row = Row("v", 0, [], {"clips": pa.array([[]], CLIPS)[0], "frame_feats": windows([0, 0])})
    with pytest.raises(VlpipeError, match="row v has no clips"):
        VideoFrameWindows()(row, "", np.random.default_rng(0))


def test_2d_and_3d_features_are_pooled_as_those_of_clips() -> None:
    """Against the pooling of `features.howto100m_2d3d`."""
    draw = np.random.default_rng(0)
    feats = {"feat_2d": draw.normal(size=(6, 3)), "feat_3d": draw.normal(size=(9, 3))}
    columns: dict[str, Any] = {
        name: pa.array([some.astype(np.float16).tolist()], pa.list_(pa.list_(pa.float16(), 3)))[0]
        for name, some in feats.items()
    }
    clip = {"start_s": 1.4, "end_s": 3.2, "text": "cut", "candidates": []}
    row = Row("v", 0, [], {**columns, "clips": pa.array([[clip]], CLIPS)[0]})
    maker = Video2d3d(pairs=2)
    stream = maker.collate([maker(row, "", draw)])
    assert stream.data.shape == (1, 2, 1, 6)
    halves = [some.astype(np.float16) for some in feats.values()]
    expected = clip_feature(halves[0], halves[1], 1.4, 3.2)
    np.testing.assert_allclose(stream.data[0, 1, 0].numpy(), expected, atol=1e-3)
    late = Row("v", 0, [], {**columns, "clips": pa.array([[{**clip, "start_s": 50, "end_s": 51}]], CLIPS)[0]})
    last = maker(late, "", draw)["data"][0, 0, :3]
    np.testing.assert_allclose(last, halves[0][-1] / np.linalg.norm(halves[0][-1].astype(float)), atol=1e-3)


def test_a_new_version_of_the_rule_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ListClips(rule={"use": "clips.milnce:MilNce"})
    monkeypatch.setattr(MilNce, "VERSION", 1)
    assert stage.identity("") == ("narrated.list_clips:ListClips", 1)
    monkeypatch.setattr(MilNce, "VERSION", 2)
    assert stage.identity("") == ("narrated.list_clips:ListClips", 1, 2)
