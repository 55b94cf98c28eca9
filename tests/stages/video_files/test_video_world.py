"""The demo world through the door: every film that decodes is a row with exactly the words that were said."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.files import Listing
from vlpipe.pipeline.testing import run_gather, run_map
from vlpipe.stages.demo.video_world import VideoWorld
from vlpipe.stages.video_files.videos import Videos


@pytest.mark.slow
def test_films_come_in_with_their_words(tmp_path: Path) -> None:
    """Rolling vtt with word times, overlapping srt, text tracks; truncated files and pages are rejects."""
    world = run_gather(VideoWorld(num_train=10, num_eval=1, corrupt=0.2), [], tmp_path).artifacts
    stage = Videos(videos=Listing(path=str(world / "train")), rollup="auto", no_cues="keep")
    out = run_map(stage, pa.concat_tables(stage.rows()))
    truth = {
        row["video"]: row
        for row in pq.read_table(world / "videos.parquet").to_pylist()
        if row["split"] == "train"
    }
    words: dict[str, list[str]] = defaultdict(list)
    for row in pq.read_table(world / "said.parquet").to_pylist():
        if row["split"] == "train":
            words[row["video"]] += row["text"].split()
    whole = {video for video, row in truth.items() if row["fault"] is None}
    assert set(out.table["video"].to_pylist()) == whole
    assert len(out.rejects) == len(truth) - len(whole) == 2
    for row in out.table.to_pylist():
        about = truth[row["video"]]
        heard = [] if about["subtitles"] == "none" else words[row["video"]]
        shown = [word for cue in row["cues"] for word in cue["text"].split()]
        if about["subtitles"] == "overlapping":  # written as sentences
            shown = [word.lower().strip(".") for word in shown]
        assert shown == heard, (row["video"], about["subtitles"])
        assert {cue["source"] for cue in row["cues"]} <= {
            "auto" if about["subtitles"] == "rolling" else "unknown"
        }
        assert abs(row["duration_s"] - about["duration_s"]) < 0.3
