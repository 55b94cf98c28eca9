from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.alignment.clip_text_score import ClipTextScore
from vlpipe.stages.clips.frame_signals import FrameSignals
from vlpipe.stages.clips.look_signals import LookSignals
from vlpipe.stages.clips.spans import SpanClips
from vlpipe.stages.common.model import load
from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.features.frames import FrameFeatures
from vlpipe.stages.video.frame_looks import LOOKS, Grid
from vlpipe.stages.video.rows import CANDIDATE, VIDEOS
from vlpipe.stages.video.shut_in import ShutInVideo

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)  # the tiny model's size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mov: lossless, 1 frame a second, the PICTURES."""
    found = tmp_path_factory.mktemp("films")
    with av.open(str(found / "film.mov"), "w") as out:
        stream = out.add_stream("png", rate=1)
        stream.height = stream.width = 16
        stream.pix_fmt = "rgb24"
        for picture in PICTURES:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    return found


def rows(folder: Path, *times: tuple[float, float]) -> pa.Table:
    size = (folder / "film.mov").stat().st_size
    table = pa.table({"id": [f"row{n}" for n in range(len(times))], "video": ["film.mov"] * len(times)})
    table = table.append_column("num_bytes", pa.array([size] * len(times), pa.int64()))
    for at, name in enumerate(("start_s", "end_s")):
        table = table.append_column(name, pa.array([t[at] for t in times], pa.float64()))
    return table


def expected(weights: Weights) -> np.ndarray:
    blip = load(weights).model
    pixels = torch.from_numpy(np.stack([to_pixels(Image.fromarray(p), 16) for p in PICTURES]))
    with torch.no_grad():
        return blip.image_features(blip.encode_image(pixels)).numpy()


def test_each_second_has_its_frames_vector(folder: Path, weights: Weights) -> None:
    stage = FrameFeatures(videos=str(folder), model=weights)
    out = run_map(stage, rows(folder, (0, 3), (2, 9), (3.4, 3.6))).table
    wanted = expected(weights)
    found = out["frame_feats"].to_pylist()
    assert [[(e["start_s"], e["end_s"]) for e in some] for some in found] == [
        [(0, 1), (1, 2), (2, 3)],
        [(2, 3), (3, 4), (4, 5), (5, 6)],
        [(3, 4)],
    ]
    for some in found:
        for entry in some:
            assert np.array(entry["feat"]) == pytest.approx(
                wanted[int(entry["start_s"])], abs=2e-3
            )  # float16
    assert out["frame_weights"].to_pylist() == ["weights-digest"] * 3
    alone = run_map(stage, rows(folder, (2, 9))).table["frame_feats"].to_pylist()
    assert alone[0] == found[1]


def test_videos_are_seen_whole(folder: Path, weights: Weights) -> None:
    table = rows(folder, (0, 1)).drop_columns(["start_s", "end_s"])
    out = (
        run_map(FrameFeatures(videos=str(folder), model=weights, fps=2), table)
        .table["frame_feats"]
        .to_pylist()[0]
    )
    assert [e["start_s"] for e in out] == [k / 2 for k in range(12)]


def test_a_clip_past_the_end_is_a_fault(folder: Path, weights: Weights) -> None:
    out = run_map(FrameFeatures(videos=str(folder), model=weights), rows(folder, (0, 2), (50, 52)))
    assert out.table["id"].to_pylist() == ["row0"]
    assert [(r.id, r.why) for r in out.rejects] == [("row1", "no_frames_in_window")]


def test_the_score_is_the_mean_cosine(folder: Path, weights: Weights) -> None:
    stage = FrameFeatures(videos=str(folder), model=weights)
    seen = run_map(stage, rows(folder, (1, 4))).table
    said = ["a red circle", "two dogs"]
    seen = seen.append_column("texts", pa.array([[text(t, "asr") for t in said]], TEXTS))
    bag = [[{"start_s": 0.0, "end_s": 1.0, "text": "two dogs"}]]
    seen = seen.append_column("candidates", pa.array(bag, pa.list_(CANDIDATE)))
    loaded = load(weights)
    with torch.no_grad():
        texts = loaded.model.embed_text(*loaded.tokenizer.encode(said, 20)).numpy()
    wanted = (expected(weights)[1:4] @ texts.T).mean(0)
    row = run_map(ClipTextScore(model=weights), seen).table.to_pylist()[0]
    assert row["align_score"] == pytest.approx(wanted, abs=2e-3)
    assert row["candidate_scores"] == [row["align_score"][1]]


def test_the_vectors_length_must_be_known() -> None:
    table: Any = pa.table({"id": ["a"], "video": ["x"], "num_bytes": pa.array([1], pa.int64())})
    with pytest.raises(SchemaError, match="must know the width of its vectors"):
        FrameFeatures(videos=".", model=Weights(step="pretrain")).schema(table.schema)


def test_looks_come_from_the_same_decoding_and_give_the_signals(folder: Path, weights: Weights) -> None:
    size = (folder / "film.mov").stat().st_size
    film = {
        "id": "film",
        "video": "film.mov",
        "num_bytes": size,
        "url": "u",
        "sha256": "s",
        "video_id": "film",
    }
    films = pa.Table.from_pylist([film | {"duration_s": 6.0, "cues": []}], VIDEOS)
    clips = [(0.0, 3.0), (0.3, 2.1), (1.0, 1.1), (1.6, 1.7), (2.5, 9.0), (5.8, 5.9)]
    listed = {"video": ["film.mov"] * len(clips), "captions": ["x"] * len(clips)}
    for at, name in enumerate(("start_s", "end_s")):
        listed[name] = [clip[at] for clip in clips]
    path = folder / "spans.parquet"
    pq.write_table(pa.table(listed), path)

    asked: list[list[float]] = []
    plain = run_map(FrameFeatures(videos=str(folder), model=weights, fps=2), films).table
    frames = ShutInVideo.frames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ShutInVideo, "frames", lambda self, times, size: asked.append(times) or frames(self, times, size)
        )
        stage = FrameFeatures(videos=str(folder), model=weights, fps=2, looks=Grid(fps=4, side=32))
        seen = run_map(stage, films).table
        cut = SpanClips(spans=File(path=str(path)), windows=("frame_feats", "frame_looks"))
        found = run_map(LookSignals(), run_map(cut, seen).table).table
    assert len(asked) == 1  # of the film, with the times of both grids
    assert sorted(set(asked[0]))[:4] == [0, 0.25, 0.5, 0.75]
    assert seen.drop_columns(["frame_looks"]).equals(plain)
    decoded = FrameSignals(videos=str(folder), fps=4, side=32)
    wanted = run_map(decoded, run_map(SpanClips(spans=File(path=str(path))), films).table).table
    assert found.select(wanted.column_names).equals(wanted)
    assert found["frames_seen"].to_pylist() == [12, 7, 1, 1, 14, 1]


def test_a_clip_without_looks_is_a_fault() -> None:
    rows = pa.table({"id": ["a"], "frame_looks": pa.array([[]], LOOKS)})
    out = run_map(LookSignals(), rows)
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("a", "fault", "no_frames_in_window")]
